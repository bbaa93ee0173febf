"""The page and the pictures of an evaluation: whole, truthful, and playing in a browser."""
from __future__ import annotations

import base64
import importlib
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from threading import Timer
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from opensora.datasets.video_io import read_image, save_sample

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
HOSTILE = '</script><img src="http://a.b/c" onerror="document.title=1"> & "two" $1'
MISSING = "LPIPS: needs AlexNet weights at <PATH>"
# family, steps, computed steps of the first and of the second prompt, partly computed, colour, PSNR
METHODS = {
    "Skip, 2x": ("Skip", 6, [[0, 1, 3, 5], [0, 1, 2, 5]], [], "#c03030", 31.25),
    "no cache": ("no cache", 6, [[0, 1, 2, 3, 4, 5]] * 2, [], "#30a040", None),
    "<i>Broadcast</i>": ("Broadcast", 4, [[0, 3]] * 2, [1], "#3050c0", 28.5),
}
SHOWN = ("no cache", "Skip, 2x", "<i>Broadcast</i>")  # the uncached first
FRAMES, SIDE = 17, 64


@pytest.fixture(scope="module")
def evaluation() -> Any:
    """`evaluation(name)` imports scripts/evaluation/NAME.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield lambda name: importlib.import_module(f"evaluation.{name}")


def clip(colour: str) -> torch.Tensor:
    """[3, T, H, W]: a white bar that moves down over `colour`."""
    video = torch.tensor(ImageColor.getrgb(colour)).float().view(3, 1, 1, 1) / 127.5 - 1
    video = video.repeat(1, FRAMES, SIDE, SIDE)
    for t in range(FRAMES):
        video[:, t, 16 + 2 * t:20 + 2 * t] = 1.0
    return video


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, evaluation: Any) -> Path:
    """An evaluation's folder with results.json, its videos, its pictures and its page."""
    folder = tmp_path_factory.mktemp("evaluation")
    methods, videos = {}, []
    for i, (name, (family, steps, computed, partly, colour, psnr)) in enumerate(METHODS.items()):
        quality = {} if psnr is None else {"psnr": psnr}
        methods[name] = {"family": family, "num_steps": steps, "videos": 2,
                         "mean": {**quality, "speedup": 1.5, "lpips": 0.77777},
                         "interval": {"psnr": 0.75, "speedup": 0.0} if quality else {}}
        for j, prompt in enumerate((HOSTILE, "a bar")):
            file = save_sample(clip(colour), folder / f"videos/{i}/{j:04d}_s7").relative_to(folder)
            videos.append({"method": name, "prompt": prompt, "prompt_index": j, "seed": 7, "file": str(file),
                           "num_steps": steps, "computed_steps": computed[j], "partly": partly,
                           "metrics": {**quality, "speedup": 1.5, "lpips": 0.77777}})
    results = {"config": "c.py", "num_steps": 6, "prompts": [HOSTILE, "a bar"], "seeds": [7],
               "metrics": {"psnr": {"label": "PSNR, dB", "digits": 2}, "lpips": {"missing": MISSING},
                           "speedup": {"label": "speed-up, denoising", "digits": 2}},
               "methods": methods, "videos": videos}
    (folder / "results.json").write_text(json.dumps(results))
    evaluation("figures").draw_quality_latency(results, folder / "quality_latency.png")
    evaluation("figures").draw_timelines(results, folder / "timelines.png")
    assert evaluation("gallery").write_gallery(results, folder, prompts=2) == folder / "gallery.html"
    return folder


class Page(HTMLParser):
    """Tags in order as (name, attributes), and the texts within each kind of tag."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.source = file.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags:
            self.texts.setdefault(self.tags[-1][0], []).append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page(folder / "gallery.html")


def test_the_page_holds_its_videos_and_pictures_and_asks_for_no_file(page, folder):
    clips = [base64.b64decode(video["src"].removeprefix("data:video/mp4;base64,"))
             for video in page.all("video")]
    files = [f"videos/{list(METHODS).index(name)}/{prompt:04d}_s7.mp4"
             for prompt, name in product(range(2), SHOWN)]
    assert clips == [(folder / file).read_bytes() for file in files]
    pictures = [base64.b64decode(image["src"].partition(",")[2]) for image in page.all("img")]
    assert pictures == [(folder / f"{name}.png").read_bytes() for name in ("quality_latency", "timelines")]
    assert all(a["src"].startswith("data:") for _, a in page.tags if "src" in a)
    assert not page.all("link") and not any("href" in a for _, a in page.tags)
    assert "://" not in page.source.replace("http://a.b/c", "") and "@import" not in page.source
    assert page.all("body")[0]["data-videos"] == "6"


def test_prompts_and_names_stay_text(page):
    assert page.texts["h2"][0] == HOSTILE
    assert "<i>Broadcast</i>" in page.texts["span"]
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert len(page.all("script")) == 1 and page.source.count("</script>") == 1


def test_strips_show_the_computed_steps(page):
    strips = re.findall(r'<figure.*?(<svg.*?</svg>)', page.source, flags=re.DOTALL)

    def steps(strip: str, kind: str) -> list[int]:
        return [int(x) for x in re.findall(rf'<rect{kind} x="(\d+)"', strip)]

    for strip, (prompt, name) in zip(strips, product(range(2), SHOWN), strict=True):
        _, count, computed, partly, *_ = METHODS[name]
        assert steps(strip, "") == list(range(count))
        assert steps(strip, ' class="computed"') == computed[prompt]
        assert steps(strip, ' class="partly"') == partly
    assert page.texts["dt"].count("4 of 6 steps") == 2 and page.texts["dt"].count("2 of 4 steps") == 2


def test_what_was_not_measured_is_a_sentence_and_no_number(page):
    assert MISSING in page.texts["li"]
    assert "0.77777" not in page.source and "0.78" not in page.source
    assert [text.strip() for text in page.texts["th"] if text.strip()] == [
        "method", "videos", "PSNR, dB", "speed-up, denoising"]
    # videos, PSNR, speed-up; the intervals are in tags of their own
    assert [text.strip() for text in page.texts["td"] if text.strip()] == [
        "2", "–", "1.50", "2", "31.25", "1.50", "2", "28.50", "1.50"]
    assert [text for text in page.texts["i"] if text.strip()] == ["± 0.75"] * 2


def test_a_video_that_is_not_there_is_said_to_be_absent(evaluation, folder, tmp_path):
    results = json.loads((folder / "results.json").read_text())
    bare = Page(evaluation("gallery").write_gallery(results, tmp_path, prompts=1))
    assert bare.all("body")[0]["data-videos"] == "0" and not bare.all("video") and not bare.all("img")
    assert bare.source.count("no video") == 3 and len(bare.all("section")) == 1


def has_colour(pixels: torch.Tensor, colour: str | tuple[float, ...]) -> bool:
    rgb = ImageColor.getrgb(colour) if isinstance(colour, str) else [255 * part for part in colour]
    return int(((pixels.float() - torch.tensor(rgb)).abs().sum(dim=-1) < 6).sum()) > 100


def test_a_family_has_one_curve_by_speed_and_the_reference_none(evaluation, folder, tmp_path):
    figures = evaluation("figures")
    results = json.loads((folder / "results.json").read_text())
    results["methods"] |= {
        "Skip, 3x": {"family": "Skip", "mean": {"psnr": 35.0, "speedup": 1.25}, "interval": {}},
        "itself": {"family": "itself", "mean": {"psnr": 100.0, "speedup": 1.0}, "interval": {}}}
    assert figures.family_curves(results) == {
        "Skip": [(1.25, 35.0, 0.0, "3x"), (1.5, 31.25, 0.75, "2x")],
        "Broadcast": [(1.5, 28.5, 0.75, "<i>Broadcast</i>")]}
    figures.draw_quality_latency(results, tmp_path / "quality.png")
    pixels, colours = read_image(tmp_path / "quality.png"), figures.family_colours(results)
    assert has_colour(pixels, colours["Skip"]) and has_colour(pixels, colours["Broadcast"])
    assert colours["Skip"] != colours["Broadcast"] and not has_colour(pixels, colours["no cache"])


def test_cells_of_the_timelines_are_as_dark_as_the_share_of_videos(evaluation, folder):
    figures, pixels = evaluation("figures"), read_image(folder / "timelines.png")
    for share in (0.0, 0.5, 1.0):
        assert has_colour(pixels, tuple(figures.shades(figures.COMPUTED, np.array([share]))[0]))
    assert has_colour(pixels, figures.PARTLY)
    videos = [{"computed_steps": [0, 1, 3]}, {"computed_steps": [0, 2, 3], "partly": [1]}]
    assert figures.step_shares(videos, "computed_steps", 4).tolist() == [1, 0.5, 0.5, 1]
    assert figures.step_shares(videos, "partly", 4).tolist() == [0, 0.5, 0, 0]
    assert figures.step_counts(np.array([1, 0.5, 0.5, 1]), np.zeros(4)) == "3.0 of 4"


class Chromium:
    """One page in headless Chromium, over its debugging pipe: messages in JSON that end with a zero byte."""

    FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync",
             "--window-size=1280,900", "--remote-debugging-pipe")

    def __init__(self, profile: Path) -> None:
        self.session, self.calls = {}, 0
        # Chromium reads descriptor 3 and writes 4
        self.process = subprocess.Popen(
            ["sh", "-c", 'exec "$@" 3<&0 4>&1 0</dev/null 1>&2', "sh", "chromium", *self.FLAGS,
             f"--user-data-dir={profile}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.watchdog = Timer(60, self.process.kill)  # a browser that hangs ends here, and the test fails
        self.watchdog.start()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.session = {"sessionId": session}

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.calls += 1
        message = {"id": self.calls, "method": method, "params": params, **self.session}
        self.process.stdin.write(json.dumps(message).encode() + b"\0")
        self.process.stdin.flush()
        while (answer := self.next_message()).get("id") != self.calls:
            pass
        return answer["result"]

    def next_message(self) -> dict[str, Any]:
        message = bytearray()
        while (byte := self.process.stdout.read(1)) != b"\0":
            assert byte, "chromium has ended"
            message += byte
        return json.loads(message)

    def js(self, expression: str) -> Any:
        """The value of an expression, or of the promise that it is."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self) -> np.ndarray:
        data = base64.b64decode(self.call("Page.captureScreenshot")["data"])
        return np.array(Image.open(io.BytesIO(data)).convert("RGB"))

    def close(self) -> None:
        self.watchdog.cancel()
        self.process.terminate()
        self.process.communicate(timeout=10)


@pytest.fixture
def browser(tmp_path: Path) -> Any:
    if shutil.which("chromium") is None:
        pytest.skip("no `chromium` on the PATH, in which the page would be opened")
    browser = Chromium(tmp_path / "profile")
    yield browser
    browser.close()


def until(condition: str) -> str:
    """JavaScript: a promise of the condition's value once it is true, or false after 20 seconds."""
    return f"""new Promise((resolve) => {{
        const end = Date.now() + 20000;
        const look = () => {condition} || Date.now() > end ? resolve({condition}) : setTimeout(look, 20);
        look();
    }})"""


def test_in_a_browser_all_videos_play_in_step_and_are_seen(browser, folder):
    browser.call("Page.navigate", url=(folder / "gallery.html").as_uri())
    assert browser.js(until("document.body?.dataset.playing === '6'"))
    assert browser.js("[document.title, document.body.dataset.errors]") == ["Evaluation: c.py", "0"]
    assert browser.js("document.body.scrollWidth <= innerWidth")

    browser.js("document.querySelector('main').scrollIntoView()")
    spreads = browser.js("""new Promise((resolve) => {
        const found = [], times = () => [...document.querySelectorAll("video")].map((v) => v.currentTime);
        const look = () => {
            found.push(Math.max(...times()) - Math.min(...times()));
            if (found.length < 60) requestAnimationFrame(look); else resolve(found);
        };
        look();
    })""")
    assert np.median(spreads) < 1 / 24  # a loop's end falls into the second that this takes

    browser.call("Input.dispatchKeyEvent", type="keyDown", code="Space", key=" ", text=" ")
    assert browser.js(until("[...document.querySelectorAll('video')].every((v) => v.paused && !v.seeking)"))
    places = browser.js("""[...document.querySelectorAll("section:first-of-type video")].map((v) => {
        const {left, top} = v.getBoundingClientRect(); return [left, top]; })""")
    seen = browser.screenshot()
    for (left, top), name in zip(places, SHOWN, strict=True):
        corner = seen[int(top) + 8:int(top) + 20, int(left) + 20:int(left) + 60].mean(axis=(0, 1))
        assert np.abs(corner - ImageColor.getrgb(METHODS[name][4])).max() < 12, name

    browser.js("document.querySelector('.choices input').click()")
    hidden = browser.js("[...document.querySelectorAll('figure')].map((figure) => figure.hidden)")
    assert hidden == [True, False, False] * 2
    assert browser.js("document.querySelector('#count').textContent") == "2 of 3"
