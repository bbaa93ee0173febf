"use strict";
// One clock for all clips: they play by themselves, are kept within a frame of it, and restart together.
const find = (selector) => document.querySelector(selector);
const { body } = document;
const videos = [...document.querySelectorAll("video")];
const frame = 1 / Number(body.dataset.fps);
const clock = { time: 0, duration: 0, speed: 1, playing: false, held: true };
const advanced = new Set(); // clips that have played
const near = new Set(); // clips on the screen or close to it; what the filter hides is never among them
let moves = 0;

// The first loop plays all, so that what cannot be played is counted; later ones save the work out of sight.
const active = () => videos.filter((video) => (
  video.readyState && !video.error && (near.has(video) || !advanced.has(video))));

const settled = (video, event, done) => new Promise((resolve) => {
  if (done() || video.error) return resolve();
  for (const name of [event, "error"]) video.addEventListener(name, resolve, { once: true });
  setTimeout(resolve, 2000); // one that hangs must not stop the others
});

function seek(video) {
  video.pause();
  // past the last frame's start some browsers show nothing
  video.currentTime = Math.max(0, Math.min(clock.time, video.duration - frame / 2));
  return settled(video, "seeked", () => !video.seeking);
}

async function moveTo(time) {
  const move = ++moves;
  clock.time = time;
  clock.held = true;
  show();
  await Promise.all(active().map(seek));
  if (move === moves) clock.held = false;
}

function follow(video) {
  const ahead = video.currentTime - clock.time;
  if (clock.time > video.duration - frame) return; // a shorter clip waits on its last frame
  if (Math.abs(ahead) > 6 * frame && !video.seeking) video.currentTime = clock.time;
  // a changed rate is not seen where a seek would be
  const rate = Math.abs(ahead) < frame / 4 ? 1 : Math.max(0.5, Math.min(1.5, 1 - 4 * ahead / clock.speed));
  if (video.playbackRate !== rate * clock.speed) video.playbackRate = rate * clock.speed;
  if (video.paused) video.play().catch(() => {}); // a pause that comes before it has started is no error
}

function show() {
  find("#scrub").value = clock.time;
  find("#time").textContent = `${clock.time.toFixed(2)} / ${clock.duration.toFixed(2)} s`;
}

function report() {
  for (const video of videos) if (!video.paused && video.currentTime > 0) advanced.add(video);
  body.dataset.playing = videos.filter((video) => advanced.has(video) && !video.error).length;
  body.dataset.errors = videos.filter((video) => video.error).length;
}

let before = 0;
function tick(now) {
  const passed = Math.min(now - before, 100) / 1000; // a tab in the background has no ticks
  before = now;
  if (clock.playing && clock.duration > 0 && !clock.held && !find("#scrub:active")) {
    clock.time += passed * clock.speed;
    if (clock.time >= clock.duration) moveTo(0);
    else active().forEach(follow);
    show();
  }
  report();
  requestAnimationFrame(tick);
}

function toggle(playing = !clock.playing) {
  clock.playing = playing;
  find("#play").textContent = playing ? "Pause" : "Play";
  if (!playing) moveTo(clock.time);
}

function filter() {
  const boxes = [...document.querySelectorAll(".choices input")];
  for (const { value, checked } of boxes) {
    for (const clip of document.querySelectorAll(`figure[data-method="${value}"]`)) clip.hidden = !checked;
  }
  find("#count").textContent = `${boxes.filter((box) => box.checked).length} of ${boxes.length}`;
}

find("#play").addEventListener("click", () => toggle());
find("#scrub").addEventListener("input", (event) => moveTo(Number(event.target.value)));
find("#speed").addEventListener("change", (event) => { clock.speed = Number(event.target.value); });
find("#size").addEventListener("input", (event) => body.style.setProperty("--clip", `${event.target.value}px`));
find(".choices").addEventListener("change", filter);
find(".choices").addEventListener("click", ({ target: { dataset } }) => {
  if (!dataset.choose) return;
  for (const box of document.querySelectorAll(".choices input")) box.checked = dataset.choose === "all";
  filter();
});
document.addEventListener("click", ({ target }) => {
  if (!target.closest(".filter")) find(".filter").open = false;
});
document.addEventListener("keydown", (event) => {
  if (event.code !== "Space" || event.target.closest("button, select, summary, [type=checkbox]")) return;
  event.preventDefault(); // the page would scroll
  toggle();
});

const watch = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) near.add(target);
    else near.delete(target);
    if (!isIntersecting && advanced.has(target)) target.pause();
    else if (!clock.playing && target.readyState) seek(target);
  }
}, { rootMargin: "50%" });
videos.forEach((video) => watch.observe(video));

function measure() {
  clock.duration = Math.max(0, ...videos.map((video) => video.duration || 0));
  find("#scrub").max = clock.duration;
}

async function start() {
  filter();
  await Promise.all(videos.map((video) => settled(video, "canplay", () => video.readyState > 2)));
  measure();
  for (const video of videos) video.addEventListener("loadedmetadata", measure); // those that took longer
  await moveTo(0);
  requestAnimationFrame(tick);
  toggle(clock.duration > 0 && !matchMedia("(prefers-reduced-motion: reduce)").matches);
}
start();
