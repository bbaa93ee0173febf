"""Prompt adherence in the world of shapes, read off the pixels by plain image analysis.

`measure_clip` looks at a clip without knowing its prompt: the colours that cover the background in every
frame, the regions that differ from them, the template that each region's outline fits best, the course of its
centre and area, and the drift of the background's pattern. `compare` then holds that reading against what the
prompt says.

Legend: T frames, F sampled frames, H = W pixels. Lengths are fractions of the frame, times are frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import permutations, product

import numpy as np
from skimage.color import rgb2lab
from skimage.measure import label as connected_components

from opensora.datasets.shapes import (
    BACKGROUNDS,
    CELL,
    CLIP_FRAMES,
    COLORS,
    DIRECTIONS,
    GROWTH,
    OPPOSITE,
    SHAPES,
    SIZES,
    SPEEDS,
    Description,
    Motion,
    ShapeObject,
    parse_caption,
    shades,
    signed_distance,
)

SAMPLED_FRAMES = 17
MIN_WHOLE_FRAMES = 5  # so many frames with the object inside are enough to leave the others out
MIN_PRESENT = 0.9  # of the frames: an object's, and those whose background is the one named
MIN_UNIFORM = 0.85  # of the pixels of a frame that bear a background's name: those of the one named
MIN_BACKGROUND = 0.35  # of the pixels; no scene covers more than half of its background
MIN_CORE = 0.006  # of the pixels: a region's inside; the smallest cross has 0.015
MIN_AREA = 0.008  # of the pixels: a region; the smallest object has 0.026
MIN_IOU = 0.80  # with the best template; a circle on a square of its area has 0.83
MAX_DELTA_E = 45.0  # CIELAB distance up to which a pixel bears a colour's name
MAX_OBJECTS = 3
STILL_SPEED = min(SPEEDS.values()) / 2
STILL_SPAN = STILL_SPEED * (CLIP_FRAMES - 1)

# pixels are classified by tables over their leading bits per channel
_BITS = 5
# the palette: plain shades, second shades, objects
_NAMES = (*BACKGROUNDS, *BACKGROUNDS, *COLORS)
_FIRST_COLOR = 2 * len(BACKGROUNDS)
_NO_NAME = len(_NAMES)


@dataclass(frozen=True)
class Adherence:
    """How much of each kind of attribute is right, in [0, 1]; None where the prompt says nothing of it.

    count is the number of objects. With two objects a value is the mean over both. In a pan, direction and
    speed are the camera's, and motion is whether the object rests in the world. A background named without a
    pattern is right only if it is plain.
    """

    count: float | None = None
    color: float | None = None
    shape: float | None = None
    size: float | None = None
    background: float | None = None
    pattern: float | None = None
    motion: float | None = None
    direction: float | None = None
    speed: float | None = None
    pan: float | None = None

    @property
    def mean(self) -> float:
        """Mean of the attributes that are present."""
        return float(np.mean(list(self.present().values())))

    def present(self) -> dict[str, float]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class ObjectReading:
    """What was seen of one object, None where that cannot be told; motion is relative to the background."""

    color: str
    shape: str | None
    size: str | None
    motion: Motion


@dataclass(frozen=True)
class ClipReading:
    """What was seen in a clip. `count` includes regions of a colour that another object has already."""

    background: str | None
    pattern: str | None
    pan: Motion | None
    objects: tuple[ObjectReading, ...]
    count: int


def score_clip(video: np.ndarray, prompt: str) -> Adherence:
    """How far a clip, uint8 [T, H, W, 3] at 24 fps with T >= 2 and H = W, shows what `prompt` says.

    Raises ValueError for another kind of array and for a prompt outside the grammar of `shapes`.
    """
    return compare(measure_clip(video), parse_caption(prompt))


def average(scores: Sequence[Adherence]) -> Adherence:
    """Attribute by attribute, the mean over the clips that have it."""
    values: dict[str, list[float]] = {}
    for score in scores:
        for name, value in score.present().items():
            values.setdefault(name, []).append(value)
    return Adherence(**{name: float(np.mean(found)) for name, found in values.items()})


def compare(reading: ClipReading, description: Description) -> Adherence:
    """Scores a reading; its objects are matched with the described ones by colour, shape and size first."""
    described = description.objects
    candidates = (*reading.objects, *(None for _ in described))
    matches = (
        [_object_scores(obj, seen) for obj, seen in zip(described, chosen, strict=True)]
        for chosen in permutations(candidates, len(described))
    )
    best = max(matches, key=_match_quality)
    values = {}
    for name in ("color", "shape", "size", "motion", "direction", "speed"):
        found = [scores[name] for scores in best if name in scores]
        if found:
            values[name] = float(np.mean(found))
    values["count"] = float(reading.count == len(described))
    if description.pattern == "plain":
        is_plain = reading.pattern == "plain"
        values["background"] = float(is_plain and reading.background == description.background)
    else:
        values["background"] = float(reading.background == description.background)
        values["pattern"] = float(reading.pattern == description.pattern)
    if description.pan is not None:
        values["pan"] = float(reading.pan is not None)
        seen = reading.pan or Motion("still")
        values["direction"] = float(seen.direction == description.pan.direction)
        values["speed"] = float(seen.speed == description.pan.speed)
    return Adherence(**values)


def measure_clip(video: np.ndarray) -> ClipReading:
    """Reads a clip, uint8 [T, H, W, 3] with T >= 2 and H = W; ValueError for any other array."""
    t, h, w, channels = video.shape if video.ndim == 4 else (0, 0, 0, 0)
    if video.dtype != np.uint8 or channels != 3 or t < 2 or h != w:
        found = f"{video.dtype} {list(video.shape)}"
        raise ValueError(f"video is {found}; allowed: uint8 [T, H, W, 3] with T >= 2 and H = W")
    stride = max(1, (len(video) - 1) // (SAMPLED_FRAMES - 1))
    frames = np.ascontiguousarray(video[::stride])  # [F, H, W, 3]
    times = np.arange(len(frames)) * stride
    bins = _color_bins(frames)
    palette_class = _palette_table()[bins]
    background = _read_background(frames, palette_class)
    if background.name and not _is_uniform(_palette_table()[_color_bins(video)], background.name):
        background = _Background(None, background.pattern, background.colors)
    colors = _object_colors(frames, palette_class)
    region = _region_table(background.colors, [rgb for _, rgb in colors])[bins]  # [F, H, W], 0 is background
    drift = np.zeros(2)
    if background.pattern in ("striped", "checked"):
        drift = _pattern_drift(bins, region == 0, background, stride)
    objects, count = [], 0
    for k, (color, _) in enumerate(colors, start=1):
        track = _follow(region == k)
        if track is not None:
            objects.append(_read_object(color, track, times, drift))
            count += track.regions
    pan = None
    if np.hypot(*drift) > STILL_SPEED:
        moved = _moves(drift)
        pan = Motion("moves", OPPOSITE.get(moved.direction), moved.speed)
    return ClipReading(background.name, background.pattern, pan, tuple(objects), count)


@dataclass(frozen=True)
class _Background:
    name: str | None
    pattern: str | None
    colors: np.ndarray  # float32 [1 or 2, 3]: as measured, the plain shade first


@dataclass(frozen=True)
class _Track:
    """One object through the sampled frames, where it was found."""

    frames: np.ndarray  # [n] indices of sampled frames
    areas: np.ndarray  # [n] fractions of the pixels
    centers: np.ndarray  # [n, 2] x and y of the centroid
    masks: np.ndarray  # bool [n, H, W]
    regions: int


def _match_quality(scores: list[dict[str, float]]) -> tuple[float, float]:
    looks = sum(s[name] for s in scores for name in ("color", "shape", "size"))
    return looks, sum(sum(s.values()) for s in scores)


def _object_scores(obj: ShapeObject, seen: ObjectReading | None) -> dict[str, float]:
    names = ["color", "shape", "size", "motion"] + ["direction", "speed"] * (obj.motion.kind == "moves")
    if seen is None:
        return dict.fromkeys(names, 0.0)
    scores = {name: float(getattr(seen, name) == getattr(obj, name)) for name in ("color", "shape", "size")}
    scores["motion"] = float(seen.motion.kind == obj.motion.kind)
    if obj.motion.kind == "moves":
        scores["direction"] = float(seen.motion.direction == obj.motion.direction)
        scores["speed"] = float(seen.motion.speed == obj.motion.speed)
    return scores


def _color_bins(frames: np.ndarray) -> np.ndarray:
    """Index of each pixel's colour in the tables: uint16 [..., H, W]."""
    coarse = (frames >> (8 - _BITS)).astype(np.uint16)
    return (coarse[..., 0] << (2 * _BITS)) | (coarse[..., 1] << _BITS) | coarse[..., 2]


@lru_cache(maxsize=1)
def _bin_colors() -> np.ndarray:
    """The middle of each bin: float32 [bins, 3]."""
    levels = (np.arange(2**_BITS, dtype=np.float32) + 0.5) * 2 ** (8 - _BITS)
    return np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)


@lru_cache(maxsize=1)
def _palette_table() -> np.ndarray:
    """The nearest palette colour of each bin in CIELAB, or _NO_NAME: uint8 [bins]."""
    both = np.stack([shades(name) for name in BACKGROUNDS])  # [backgrounds, 2, 3]
    palette = np.concatenate([both[:, 0], both[:, 1], np.asarray(list(COLORS.values()))])
    lab, palette_lab = rgb2lab(_bin_colors() / 255), rgb2lab(palette / 255)
    distances = np.stack([np.linalg.norm(lab - color, axis=-1) for color in palette_lab])
    return np.where(distances.min(0) <= MAX_DELTA_E, distances.argmin(0), _NO_NAME).astype(np.uint8)


def _read_background(frames: np.ndarray, palette_class: np.ndarray) -> _Background:
    n = len(BACKGROUNDS)
    counts = np.bincount(palette_class.ravel(), minlength=_NO_NAME + 1)
    plain, second = counts[:n], counts[n : 2 * n]
    best = int((plain + second).argmax())
    covered = plain[best] + second[best]
    if covered < MIN_BACKGROUND * palette_class.size:
        return _Background(None, None, np.median(frames[:, ::4, ::4].reshape(-1, 3), axis=0)[None])
    base, shade = palette_class == best, palette_class == best + n
    if not 0.2 < second[best] / covered < 0.8:
        main = base if plain[best] >= second[best] else shade
        return _Background(_NAMES[best], "plain", _median_color(frames, main)[None])
    colors = np.stack([_median_color(frames, base), _median_color(frames, shade)])
    return _Background(_NAMES[best], _read_pattern(shade.astype(np.int8) - base), colors)


def _is_uniform(palette_class: np.ndarray, name: str) -> bool:
    """Whether nearly all frames [T, H, W] have this background and no part of another."""
    n, best = len(BACKGROUNDS), list(BACKGROUNDS).index(name)
    named = (palette_class < 2 * n).sum((1, 2))
    own = ((palette_class == best) | (palette_class == best + n)).sum((1, 2))
    enough = np.maximum(named, MIN_BACKGROUND * palette_class[0].size)
    return np.mean(own > MIN_UNIFORM * enough) >= MIN_PRESENT


def _read_pattern(sign: np.ndarray) -> str | None:
    """Tells stripes from checks by how a shift of one cell turns the shades.

    sign: int8 [F, H, W], -1 and 1 for the two shades, 0 elsewhere.
    """
    cell = round(CELL * sign.shape[-1])
    across = sign[:, :, cell:] * sign[:, :, :-cell]
    along = sign[:, cell:] * sign[:, :-cell]
    x, y = (same.sum() / max(1, np.count_nonzero(same)) for same in (across, along))
    if x > -0.4:
        return None
    return "striped" if y > 0.4 else "checked" if y < -0.4 else None


def _object_colors(frames: np.ndarray, palette_class: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Names and measured colours of the regions that have an inside in most frames, largest first."""
    r = max(1, round(frames.shape[1] / 64))
    middle = palette_class[:, r:-r, r:-r]
    core = middle >= _FIRST_COLOR
    # edges mix colours: only pixels whose neighbours agree count
    for y, x in ((0, r), (2 * r, r), (r, 0), (r, 2 * r)):
        core &= middle == palette_class[:, y : y + middle.shape[1], x : x + middle.shape[2]]
    classes = np.where(core, middle, _NO_NAME)
    sizes = np.stack([np.bincount(frame.ravel(), minlength=_NO_NAME + 1) for frame in classes])
    typical = np.median(sizes[:, _FIRST_COLOR:_NO_NAME], axis=0) / palette_class[0].size
    inner = frames[:, r:-r, r:-r]
    order = [int(i) for i in np.argsort(-typical) if typical[i] >= MIN_CORE][:MAX_OBJECTS]
    return [(list(COLORS)[i], _median_color(inner, classes == i + _FIRST_COLOR)) for i in order]


def _median_color(frames: np.ndarray, mask: np.ndarray) -> np.ndarray:
    pixels = frames[mask]
    return np.median(pixels[:: max(1, len(pixels) // 2000)], axis=0).astype(np.float32)


def _region_table(background: np.ndarray, objects: Sequence[np.ndarray]) -> np.ndarray:
    """For each bin 0 if the background's colours or a mix of them are nearest, else the object's number."""
    colors = _bin_colors()
    distances = [np.linalg.norm(colors - _nearest_mix(colors, background)[1], axis=-1)]
    distances += [np.linalg.norm(colors - rgb, axis=-1) for rgb in objects]
    return np.argmin(distances, axis=0).astype(np.uint8)


def _nearest_mix(colors: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The share of the second end, [n, 1], in the mix nearest to each colour, and that mix, [n, 3]."""
    if len(ends) == 1:
        return np.zeros((len(colors), 1), dtype=np.float32), ends
    line = ends[1] - ends[0]
    share = np.clip((colors - ends[0]) @ line / (line @ line), 0, 1)[:, None]
    return share, ends[0] + share * line


def _pattern_drift(bins: np.ndarray, mask: np.ndarray, background: _Background, stride: int) -> np.ndarray:
    """Velocity (x, y) of the background's pattern: the peak of the correlation of successive frames."""
    size = mask.shape[-1]
    share = _nearest_mix(_bin_colors(), background.colors)[0][:, 0]
    signal = (2 * share - 1)[bins] * mask
    spectrum = np.fft.rfft2(signal)
    # correlation summed over time, as the drift is steady
    correlation = np.fft.irfft2((spectrum[1:] * spectrum[:-1].conj()).sum(0), s=(size, size))
    reach = int(CELL * size / 2)  # farther off, the next cell could be meant
    shifts = np.arange(-reach, reach + 1)
    window = correlation[np.ix_(shifts, shifts)]
    if background.pattern == "striped":
        x = _peak(window.sum(0))
        return np.array([x - reach, 0.0]) / (size * stride)
    row, column = np.unravel_index(window.argmax(), window.shape)
    return np.array([_peak(window[row]) - reach, _peak(window[:, column]) - reach]) / (size * stride)


def _peak(values: np.ndarray) -> float:
    """Position of the maximum, refined by a parabola through its neighbours."""
    i = int(values.argmax())
    if not 0 < i < len(values) - 1:
        return float(i)
    left, top, right = values[i - 1 : i + 2]
    bend = left - 2 * top + right
    return i + (0.5 * (left - right) / bend if bend < 0 else 0.0)


def _follow(mask: np.ndarray) -> _Track | None:
    """The largest region of mask [F, H, W] in each frame; None unless it is there in nearly all of them."""
    size = mask.shape[-1]
    frames, areas, centers, masks, regions = [], [], [], [], []
    for f in np.flatnonzero(mask.sum((1, 2)) >= MIN_AREA * size**2):
        parts = connected_components(mask[f], connectivity=1)
        pixels = np.bincount(parts.ravel())[1:]
        largest = int(pixels.argmax())
        if pixels[largest] < MIN_AREA * size**2:
            continue
        rows, columns = np.nonzero(parts == largest + 1)
        frames.append(f)
        areas.append(pixels[largest] / size**2)
        centers.append(((columns.mean() + 0.5) / size, (rows.mean() + 0.5) / size))
        masks.append(parts == largest + 1)
        regions.append(int((pixels > max(0.3 * pixels[largest], MIN_AREA * size**2)).sum()))
    if len(frames) < max(2, MIN_PRESENT * len(mask)):
        return None
    typical = int(np.median(regions))
    return _Track(np.array(frames), np.array(areas), np.array(centers), np.stack(masks), typical)


def _read_object(color: str, track: _Track, times: np.ndarray, drift: np.ndarray) -> ObjectReading:
    inside = ~(track.masks[:, [0, -1]].any((1, 2)) | track.masks[:, :, [0, -1]].any((1, 2)))
    # an object cut by the frame's edge has another centre and area
    use = np.flatnonzero(inside) if inside.sum() >= MIN_WHOLE_FRAMES else np.arange(len(track.frames))
    at = times[track.frames[use]]
    middle = (CLIP_FRAMES - 1) / 2
    log_slope, log_size = np.polyfit(at - middle, 0.5 * np.log(track.areas[use]), 1)
    velocity, _ = np.polyfit(at, track.centers[use], 1)
    shape = _fit_shape(track.masks[use])
    unit_area = _template(shape)[0] if shape else np.mean([_template(s)[0] for s in SHAPES])
    size = np.exp(log_size) / unit_area**0.5
    course = track.centers - np.outer(times[track.frames], drift)
    motion = _read_motion(velocity - drift, np.ptp(course, axis=0).max(), log_slope * (CLIP_FRAMES - 1))
    return ObjectReading(color, shape, _nearest_word(size, SIZES, reach=1.35), motion)


def _read_motion(velocity: np.ndarray, span: float, log_growth: float) -> Motion:
    """The kind of motion from a steady velocity, the farthest way covered and the growth over a clip."""
    resizes = abs(log_growth) > 0.5 * np.log(GROWTH)
    moves = np.hypot(*velocity) > STILL_SPEED
    if moves and not resizes:
        return _moves(velocity)
    if resizes and not moves:
        return Motion("grows" if log_growth > 0 else "shrinks")
    return Motion("unsteady" if moves or span > STILL_SPAN else "still")


def _moves(velocity: np.ndarray) -> Motion:
    """The direction within 30 degrees of an axis, if any, and the speed's word, if any."""
    speed = float(np.hypot(*velocity))
    along = {name: float(np.dot(velocity, unit)) for name, unit in DIRECTIONS.items()}
    direction = max(along, key=along.__getitem__)
    straight = along[direction] > 0.866 * speed
    return Motion("moves", direction if straight else None, _nearest_word(speed, SPEEDS, reach=2.0))


def _nearest_word(value: float, words: dict[str, float], reach: float) -> str | None:
    """The word whose value is nearest in ratio, if within a factor of `reach`."""
    ratios = {word: abs(np.log(value / target)) for word, target in words.items()}
    word = min(ratios, key=ratios.__getitem__)
    return word if ratios[word] <= np.log(reach) else None


def _fit_shape(masks: np.ndarray) -> str | None:
    """The shape whose template of equal area and centre overlaps masks [n, H, W] best, mostly well."""
    overlaps = np.zeros((len(masks), len(SHAPES)))
    for (i, mask), (j, shape) in product(enumerate(masks), enumerate(SHAPES)):
        rows, columns = np.nonzero(mask)
        unit_area, offset = _template(shape)
        size = (len(rows) / unit_area) ** 0.5
        margin = round(size / 4)
        top, left = max(0, rows.min() - margin), max(0, columns.min() - margin)
        crop = mask[top : rows.max() + margin + 1, left : columns.max() + margin + 1]
        x = np.arange(crop.shape[1], dtype=np.float32)[None, :] + np.float32(left - columns.mean())
        y = np.arange(crop.shape[0], dtype=np.float32)[:, None] + np.float32(top - rows.mean())
        template = signed_distance(shape, x, y + np.float32(offset * size), size) < 0
        overlaps[i, j] = (crop & template).sum() / (crop | template).sum()
    typical = np.median(overlaps, axis=0)
    return list(SHAPES)[int(typical.argmax())] if typical.max() >= MIN_IOU else None


@lru_cache(maxsize=len(SHAPES))
def _template(shape: str) -> tuple[float, float]:
    """Area of a shape of size 1, and how far its centroid lies below its centre."""
    grid = (np.arange(1200, dtype=np.float32) + 0.5) / 1000 - 0.6
    inside = signed_distance(shape, grid[None, :], grid[:, None], 1.0) < 0
    return float(inside.mean() * 1.2**2), float((inside * grid[:, None]).sum() / inside.sum())
