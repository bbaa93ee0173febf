"""The world of shapes: seeded, captioned clips, rendered from analytic signed distances.

A clip shows one or two plain shapes on a background, 51 frames at 24 fps. Its caption follows one grammar of
`VOCABULARY`'s words, each of which tells something:

    caption    = [pan] object [motion] ["and" object motion] "on a" [pattern] background "background"
    pan        = "the camera pans" direction [speed] "over"
    object     = "a" size color shape
    motion     = "stays still" | "moves" direction [speed] | "grows" | "shrinks"
    size       = "small" | "large"                    direction = "left" | "right" | "up" | "down"
    color      = a word of COLORS                     speed     = "slowly" | "quickly" (medium is left unsaid)
    shape      = a word of SHAPES                     pattern   = "striped" | "checked" (plain is left unsaid)
    background = a word of BACKGROUNDS

With a pan there is one object, without a motion: it rests in the world, so that it and the patterned
background drift against the pan together. Two objects differ in colour and keep to lanes of their own, so
they never overlap.

Legend: T frames, H = W pixels. Positions and lengths are fractions of the frame, x to the right, y down;
placement plans for frames 0 to 50.
"""
from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from opensora.registry import DATASETS

FPS = 24
CLIP_FRAMES = 51
HELD_OUT_ONE_IN = 10

# extent of a shape of this size, as a fraction of the frame; a growing shape has it halfway through the clip
SIZES = {"small": 0.27, "large": 0.42}
# half width and half height in units of the size; all shapes of one size have about the same area
SHAPES = {
    "circle": (0.50, 0.50),
    "square": (0.45, 0.45),
    "triangle": (0.58, 0.53),
    "cross": (0.52, 0.52),
    "diamond": (0.58, 0.58),
}
CROSS_ARM = 0.20  # half width of an arm of the cross, in units of the size
COLORS = {
    "red": (222, 30, 38),
    "orange": (255, 140, 0),
    "yellow": (255, 226, 20),
    "green": (24, 168, 48),
    "cyan": (0, 208, 226),
    "blue": (28, 70, 240),
    "purple": (150, 30, 200),
    "pink": (255, 110, 190),
}
BACKGROUNDS = {
    "white": (246, 246, 246),
    "black": (10, 10, 10),
    "gray": (128, 128, 128),
    "navy": (16, 24, 82),
    "beige": (222, 204, 165),
    "brown": (92, 58, 36),
}
PATTERNS = ("striped", "checked")  # or "plain"
CELL = 1 / 6  # width of a stripe or a check
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
# a pan shows against these; the stripes are vertical
PAN_PATTERNS = {"left": PATTERNS, "right": PATTERNS, "up": ("checked",), "down": ("checked",)}
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}
# fractions of the frame per frame of video
SPEEDS = {"slow": 0.0032, "medium": 0.0064, "fast": 0.0128}
ADVERBS = {"slow": "slowly", "medium": "", "fast": "quickly"}
GROWTH = 1.7  # size of the last frame over size of the first

_FRAME_WORDS = ("a", "and", "on", "over", "the", "camera", "pans", "background")
_MOTION_WORDS = ("stays", "still", "moves", "grows", "shrinks", "slowly", "quickly")
_NAMES = (*SIZES, *COLORS, *SHAPES, *PATTERNS, *BACKGROUNDS, *DIRECTIONS)
VOCABULARY = (*_FRAME_WORDS, *_MOTION_WORDS, *_NAMES)

# how often: layout of the scene, kind of motion, patterned background without a pan
TWO_OBJECTS, PAN = 0.20, 0.13
STILL, GROWS, SHRINKS = 0.12, 0.08, 0.08
PATTERNED = 0.06


@dataclass(frozen=True)
class Motion:
    """What an object or the camera does; direction and speed belong to `moves` alone."""

    kind: str
    direction: str | None = None
    speed: str | None = None

    @property
    def phrase(self) -> str:
        if self.kind == "moves":
            return _join("moves", self.direction, ADVERBS[self.speed])
        return "stays still" if self.kind == "still" else self.kind

    def velocity(self) -> tuple[float, float]:
        """(x, y) in fractions of the frame per frame."""
        if self.kind != "moves":
            return 0.0, 0.0
        x, y = DIRECTIONS[self.direction]
        return x * SPEEDS[self.speed], y * SPEEDS[self.speed]

    def scale(self, frame: int) -> float:
        """Size at `frame` over the nominal size, which is passed halfway through the clip."""
        sign = {"grows": 1.0, "shrinks": -1.0}.get(self.kind, 0.0)
        return GROWTH ** (sign * (frame / (CLIP_FRAMES - 1) - 0.5))


@dataclass(frozen=True)
class ShapeObject:
    """One object as a caption describes it."""

    size: str
    color: str
    shape: str
    motion: Motion

    @property
    def noun(self) -> str:
        return f"a {self.size} {self.color} {self.shape}"

    def half_extent(self, scale: float = 1.0) -> tuple[float, float]:
        """Half width and half height, in fractions of the frame."""
        hx, hy = SHAPES[self.shape]
        return hx * SIZES[self.size] * scale, hy * SIZES[self.size] * scale


@dataclass(frozen=True)
class Description:
    """All that a caption says. `pan` is the camera's motion; the object of a pan has the motion `still`."""

    objects: tuple[ShapeObject, ...]
    background: str
    pattern: str = "plain"
    pan: Motion | None = None

    @property
    def caption(self) -> str:
        pattern = self.pattern if self.pattern in PATTERNS else ""
        setting = _join("on a", pattern, self.background, "background")
        if self.pan is not None:
            speed = ADVERBS[self.pan.speed]
            return _join("the camera pans", self.pan.direction, speed, "over", self.objects[0].noun, setting)
        return _join(" and ".join(f"{o.noun} {o.motion.phrase}" for o in self.objects), setting)

    def screen_motion(self, index: int) -> Motion:
        """The motion of object `index` as seen in the frame: against the camera in a pan."""
        if self.pan is not None:
            return Motion("moves", OPPOSITE[self.pan.direction], self.pan.speed)
        return self.objects[index].motion


@dataclass(frozen=True)
class Scene:
    """A description with everything that its caption leaves open.

    starts: (x, y) of each object's centre in frame 0.  phase: (x, y) of the pattern in frame 0.
    """

    description: Description
    starts: tuple[tuple[float, float], ...]
    phase: tuple[float, float]

    @property
    def caption(self) -> str:
        return self.description.caption


def parse_caption(text: str) -> Description:
    """The description whose caption is `text`. Raises ValueError naming the first word that does not fit."""
    words = _Words(text)
    pan = None
    if words.take("the", "a") == "the":
        words.take("camera")
        words.take("pans")
        direction = words.take(*DIRECTIONS)
        pan = Motion("moves", direction, words.speed())
        words.take("over")
        words.take("a")
        objects = (ShapeObject(*words.noun(), Motion("still")),)
        words.take("on")
    else:
        objects = (ShapeObject(*words.noun(), words.motion()),)
        if words.take("and", "on") == "and":
            words.take("a")
            objects += (ShapeObject(*words.noun(), words.motion()),)
            words.take("on")
    words.take("a")
    pattern = words.optional(*PATTERNS) or "plain"
    if pan is not None and pattern not in PAN_PATTERNS[pan.direction]:
        raise ValueError(f"a pan {pan.direction} over a {pattern} background does not show; "
                         f"allowed: {' or '.join(PAN_PATTERNS[pan.direction])}")
    background = words.take(*BACKGROUNDS)
    words.take("background")
    words.end()
    return Description(objects, background, pattern, pan)


def is_held_out(description: Description) -> bool:
    """Whether no training clip may show this combination of attributes, whichever object is named first."""
    objects = sorted(description.objects, key=lambda o: o.noun + o.motion.phrase)
    canonical = Description(tuple(objects), description.background, description.pattern, description.pan)
    return zlib.crc32(canonical.caption.encode()) % HELD_OUT_ONE_IN == 0


def sample_scene(seed: int, held_out: bool = False) -> Scene:
    """The scene of `seed` (>= 0), the same on every machine, with a training or a held-out caption."""
    rng = np.random.default_rng(seed)
    description = _sample_description(rng)
    while is_held_out(description) != held_out:
        description = _sample_description(rng)
    return _place(description, rng)


def place(description: Description, seed: int) -> Scene:
    """A scene that shows `description`, for instance one that was parsed from a prompt."""
    return _place(description, np.random.default_rng(seed))


def held_out_prompts(n: int, seed: int = 0) -> list[str]:
    """`n` different captions of the world's own distribution that no training clip ever has.

    Beyond a few hundred, scenes with two objects gain: the others' captions begin to run out.
    """
    prompts: dict[str, None] = {}
    index = 0
    while len(prompts) < n:
        prompts[sample_scene(_item_seed(seed, index), held_out=True).caption] = None
        index += 1
    return list(prompts)


def render(scene: Scene, num_frames: int = CLIP_FRAMES, size: int = 128) -> np.ndarray:
    """The clip of a scene: uint8 [T, H, W, 3], anti-aliased over one pixel."""
    description = scene.description
    frames = _render_background(scene, num_frames, size)
    grid = np.arange(size, dtype=np.float32) + np.float32(0.5)
    for index, obj in enumerate(description.objects):
        color = np.asarray(COLORS[obj.color], dtype=np.float32)
        motion = description.screen_motion(index)
        (x0, y0), (vx, vy) = scene.starts[index], motion.velocity()
        for t in range(num_frames):
            scale = motion.scale(t)
            hx, hy = obj.half_extent(scale)
            x, y = x0 + vx * t, y0 + vy * t
            columns, rows = _covered(x, hx, size), _covered(y, hy, size)
            # pixel centres relative to the object, in pixels
            px = grid[None, columns] - np.float32(x * size)
            py = grid[rows, None] - np.float32(y * size)
            distance = signed_distance(obj.shape, px, py, SIZES[obj.size] * scale * size)
            alpha = np.clip(0.5 - distance, 0, 1)[..., None]  # [h, w, 1]
            patch = frames[t, rows, columns]
            patch[...] = patch + alpha * (color - patch) + 0.5
    return frames


def signed_distance(shape: str, x: np.ndarray, y: np.ndarray, size: float) -> np.ndarray:
    """Distance to the outline of `shape` centred at 0, negative inside: [h, w].

    x [1, w], y [h, 1] and size are in one unit. Outside a corner it is the distance to the
    nearer side's line.
    """
    hx, hy = (half * size for half in SHAPES[shape])
    if shape == "circle":
        return np.sqrt(x * x + y * y) - hx
    x, down = np.abs(x), y
    y = np.abs(y)
    if shape == "square":
        return np.maximum(x - hx, y - hy)
    if shape == "diamond":
        return (x + y - hx) * np.float32(0.5**0.5)
    if shape == "cross":
        arm = CROSS_ARM * size
        return np.minimum(np.maximum(x - hx, y - arm), np.maximum(x - arm, y - hy))
    if shape == "triangle":
        # apex on top: x / hx = (down + hy) / (2 hy) along a side
        normal = np.float32(1 / np.hypot(2 * hy, hx))
        side = (2 * hy * x - hx * (down + hy)) * normal
        return np.maximum(side, down - hy)
    raise ValueError(f"shape is {shape!r}; allowed: {', '.join(SHAPES)}")


@DATASETS.register_module()
class ShapesDataset(torch.utils.data.Dataset):
    """`length` clips of the world of shapes, rendered when asked for; item i depends on `seed` and i alone.

    An item: video [3, T, H, W], float32 in [-1, 1] (or uint8 in [0, 255] with as_uint8), text, num_frames,
    height, width, fps. With held_out, the captions are those that the training set never has.
    """

    def __init__(
        self,
        length: int,
        num_frames: int = CLIP_FRAMES,
        size: int = 128,
        seed: int = 0,
        held_out: bool = False,
        as_uint8: bool = False,
    ) -> None:
        for name, value in (("length", length), ("num_frames", num_frames), ("size", size)):
            if value < 1:
                raise ValueError(f"{name} is {value}; allowed: 1 or more")
        self.length = length
        self.num_frames = num_frames
        self.size = size
        self.seed = seed
        self.held_out = held_out
        self.as_uint8 = as_uint8

    def __len__(self) -> int:
        return self.length

    def scene(self, index: int) -> Scene:
        if not 0 <= index < self.length:
            raise IndexError(f"index is {index}; allowed: 0 to {self.length - 1}")
        return sample_scene(_item_seed(self.seed, index), self.held_out)

    def __getitem__(self, index: int) -> dict[str, object]:
        scene = self.scene(index)
        video = torch.from_numpy(render(scene, self.num_frames, self.size)).permute(3, 0, 1, 2).contiguous()
        if not self.as_uint8:
            video = video.to(torch.float32).div_(127.5).sub_(1)
        size = {"num_frames": self.num_frames, "height": self.size, "width": self.size}
        return {"video": video, "text": scene.caption, "fps": FPS, **size}


def shades(background: str) -> np.ndarray:
    """The two colours of a patterned background, float32 [2, 3]; the first is the plain one."""
    base = np.asarray(BACKGROUNDS[background], dtype=np.float32)
    dark = base.mean() < 150
    return np.stack([base, base + (0.24 if dark else -0.24) * (255 - base if dark else base)])


def _render_background(scene: Scene, num_frames: int, size: int) -> np.ndarray:
    description = scene.description
    frames = np.empty((num_frames, size, size, 3), dtype=np.uint8)
    if description.pattern == "plain":
        frames[:] = np.asarray(BACKGROUNDS[description.background], dtype=np.uint8)
        return frames
    first, second = shades(description.background)
    steps = np.linspace(0, 1, 256, dtype=np.float32)[:, None]
    palette = (first + steps * (second - first) + 0.5).astype(np.uint8)  # [256, 3]
    vx, vy = description.screen_motion(0).velocity() if description.pan else (0.0, 0.0)
    moving = num_frames if description.pan else 1
    for t in range(moving):
        x = _square_wave(scene.phase[0] - vx * t, size)[None, :]
        if description.pattern == "striped":
            weight = x
        else:
            y = _square_wave(scene.phase[1] - vy * t, size)[:, None]
            weight = x + y - 2 * x * y
        frames[t] = palette[(weight * 255 + 0.5).astype(np.uint8)]
    frames[moving:] = frames[moving - 1]
    return frames


def _square_wave(phase: float, size: int) -> np.ndarray:
    """0 and 1 in turn over cells of CELL, anti-aliased over one pixel: float32 [size]."""
    period = 2 * CELL
    x = ((np.arange(size) + 0.5) / size + phase) / period % 1.0
    pixels_inside = (0.25 - np.abs(x - 0.5)) * period * size
    return np.clip(0.5 + pixels_inside, 0, 1).astype(np.float32)


def _covered(center: float, half: float, size: int) -> slice:
    """The pixels that an interval can touch, with one for anti-aliasing."""
    start = int(np.floor((center - half) * size)) - 1
    stop = int(np.ceil((center + half) * size)) + 1
    return slice(min(max(start, 0), size), min(max(stop, 0), size))


def _sample_description(rng: np.random.Generator) -> Description:
    layout = rng.random()
    background = _pick(rng, tuple(BACKGROUNDS))
    if layout < PAN:
        pattern = _pick(rng, PATTERNS)
        directions = tuple(d for d in DIRECTIONS if pattern in PAN_PATTERNS[d])
        pan = Motion("moves", _pick(rng, directions), _pick(rng, tuple(SPEEDS)))
        return Description((_sample_object(rng, Motion("still")),), background, pattern, pan)
    pattern = _pick(rng, PATTERNS) if rng.random() < PATTERNED else "plain"
    if layout < PAN + TWO_OBJECTS:
        axis = _pick(rng, (("left", "right"), ("up", "down")))
        first = _sample_object(rng, _sample_motion(rng, axis, may_grow=False))
        second = _sample_object(rng, _sample_motion(rng, axis, may_grow=False), other_than=first.color)
        return Description((first, second), background, pattern)
    motion = _sample_motion(rng, tuple(DIRECTIONS), may_grow=True)
    return Description((_sample_object(rng, motion),), background, pattern)


def _sample_object(rng: np.random.Generator, motion: Motion, other_than: str = "") -> ShapeObject:
    colors = [c for c in COLORS if c != other_than]
    return ShapeObject(_pick(rng, list(SIZES)), _pick(rng, colors), _pick(rng, list(SHAPES)), motion)


def _sample_motion(rng: np.random.Generator, directions: Sequence[str], may_grow: bool) -> Motion:
    u = rng.random()
    if u < STILL:
        return Motion("still")
    if may_grow and u < STILL + GROWS:
        return Motion("grows")
    if may_grow and u < STILL + GROWS + SHRINKS:
        return Motion("shrinks")
    return Motion("moves", _pick(rng, directions), _pick(rng, tuple(SPEEDS)))


def _place(description: Description, rng: np.random.Generator) -> Scene:
    objects = description.objects
    motions = [description.screen_motion(i) for i in range(len(objects))]
    starts = [
        tuple(_start(rng, obj, motion, axis) for axis in (0, 1))
        for obj, motion in zip(objects, motions, strict=True)
    ]
    if len(objects) == 2:
        vertical = any(o.motion.direction in ("up", "down") for o in objects)
        _assign_lanes(rng, objects, starts, axis=0 if vertical else 1)
    return Scene(description, tuple(starts), (2 * CELL * rng.random(), 2 * CELL * rng.random()))


def _start(rng: np.random.Generator, obj: ShapeObject, motion: Motion, axis: int) -> float:
    """Where the centre starts on one axis: the object stays inside, or sticks out equally at both ends."""
    half = obj.half_extent(max(motion.scale(0), motion.scale(CLIP_FRAMES - 1)))[axis]
    travel = motion.velocity()[axis] * (CLIP_FRAMES - 1)
    low, high = half - min(travel, 0), 1 - half - max(travel, 0)
    if low > high:
        low = high = (low + high) / 2
    return low + (high - low) * rng.random()


def _assign_lanes(
    rng: np.random.Generator, objects: Sequence[ShapeObject], starts: list[tuple[float, float]], axis: int
) -> None:
    """Puts the objects side by side on `axis`, on which none of them moves, in an order of chance."""
    first, second = (0, 1) if rng.random() < 0.5 else (1, 0)
    widths = [2 * obj.half_extent()[axis] for obj in objects]
    slack = 1 - sum(widths)
    before, after = sorted((rng.random() * slack, rng.random() * slack))
    centers = {first: before + widths[first] / 2, second: after + widths[first] + widths[second] / 2}
    for i, center in centers.items():
        starts[i] = (center, starts[i][1]) if axis == 0 else (starts[i][0], center)


def _pick(rng: np.random.Generator, options: Sequence) -> object:
    # random() alone, so that the world does not depend on numpy's ways of drawing integers
    return options[int(rng.random() * len(options))]


def _item_seed(seed: int, index: int) -> int:
    return (seed << 32) + index


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)


class _Words:
    """The words of a caption, taken one by one."""

    def __init__(self, text: str) -> None:
        self.words = text.lower().rstrip(" .\n").split()
        self.position = 0

    def take(self, *allowed: str) -> str:
        word = self.words[self.position] if self.position < len(self.words) else None
        if word not in allowed:
            found = "missing" if word is None else repr(word)
            raise self.error(found, ", ".join(allowed))
        self.position += 1
        return word

    def error(self, found: str, allowed: str) -> ValueError:
        return ValueError(f"caption word {self.position + 1} is {found}; allowed there: {allowed}")

    def optional(self, *allowed: str) -> str | None:
        here = self.words[self.position : self.position + 1]
        return self.take(*allowed) if here and here[0] in allowed else None

    def end(self) -> None:
        if self.position < len(self.words):
            raise self.error(repr(self.words[self.position]), "the end of the caption")

    def noun(self) -> tuple[str, str, str]:
        return self.take(*SIZES), self.take(*COLORS), self.take(*SHAPES)

    def speed(self) -> str:
        return {"slowly": "slow", "quickly": "fast", None: "medium"}[self.optional("slowly", "quickly")]

    def motion(self) -> Motion:
        kind = self.take("stays", "moves", "grows", "shrinks")
        if kind == "stays":
            self.take("still")
            return Motion("still")
        if kind == "moves":
            return Motion("moves", self.take(*DIRECTIONS), self.speed())
        return Motion(kind)
