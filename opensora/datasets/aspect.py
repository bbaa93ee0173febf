"""Names of resolutions, aspect ratios and lengths -> pixels and frames, as in Open-Sora v1.2.

Sizes are height x width, and so are ratios: `get_image_size("480p", "9:16")` is (480, 854), a wide picture.
"""
from __future__ import annotations

import math

# length in frames at 24 fps: a multiple of the VAE's 17-frame chunks near the named seconds
NUM_FRAMES_MAP = {"1x": 51, "2x": 102, "4x": 204, "8x": 408, "16x": 816,
                  "2s": 51, "4s": 102, "8s": 204, "16s": 408, "32s": 816}

ASPECT_RATIO_MAP = {
    "3:8": "0.38", "9:21": "0.43", "12:25": "0.48", "1:2": "0.50", "9:17": "0.53", "27:50": "0.54",
    "9:16": "0.56", "5:8": "0.62", "2:3": "0.67", "3:4": "0.75", "1:1": "1.00", "4:3": "1.33",
    "3:2": "1.50", "16:9": "1.78", "17:9": "1.89", "2:1": "2.00", "50:27": "2.08",
}

_VIDEO = " ".join(ASPECT_RATIO_MAP.values())
_VIDEO_4K = _VIDEO.replace("0.56 0.62", "0.62 0.56")  # the published order, which settles ties
_IMAGE = (
    "0.25 0.26 0.27 0.28 0.32 0.33 0.35 0.40 0.42 0.48 0.50 0.52 0.57 0.60 0.68 0.72 0.78 0.82 0.88 "
    "0.94 1.00 1.07 1.13 1.21 1.29 1.38 1.46 1.67 1.75 2.00 2.09 2.40 2.50 2.89 3.00 3.11 3.62 3.75 "
    "3.88 4.00"
)
_IMAGE_2880 = (
    "0.25 0.26 0.27 0.28 0.32 0.33 0.34 0.40 0.42 0.47 0.49 0.51 0.55 0.59 0.68 0.72 0.78 0.83 0.89 "
    "0.93 1.00 1.07 1.12 1.21 1.28 1.39 1.47 1.70 1.82 2.03 2.13 2.39 2.50 2.92 3.00 3.12 3.68 3.82 "
    "3.95 4.00"
)
# PixArt's sizes of about 256 x 256 pixels; its larger tables are multiples of it, but for 2880
_SIZES_256 = (
    "128x512 128x496 128x480 128x464 144x448 144x432 144x416 160x400 160x384 176x368 176x352 176x336 192x336 "
    "192x320 208x304 208x288 224x288 224x272 240x272 240x256 256x256 256x240 272x240 272x224 288x224 288x208 "
    "304x208 320x192 336x192 352x176 368x176 384x160 400x160 416x144 432x144 448x144 464x128 480x128 496x128 "
    "512x128"
)


def _table(ratios: str, sizes: str, scale: int = 1) -> dict[str, tuple[int, int]]:
    sides = [[int(side) * scale for side in size.split("x")] for size in sizes.split()]
    return {ratio: (height, width) for ratio, (height, width) in zip(ratios.split(), sides, strict=True)}


# name -> (pixels per frame, {height / width to two decimals: (height, width)})
ASPECT_RATIOS: dict[str, tuple[int, dict[str, tuple[int, int]]]] = {
    "144p": (36864, _table(_VIDEO, (
        "117x312 125x291 133x277 135x270 139x262 141x260 144x256 151x241 156x234 166x221 192x192 221x165 "
        "235x156 256x144 263x139 271x135 277x132"))),
    "256": (65536, _table(_IMAGE, _SIZES_256)),
    "240p": (102240, _table(_VIDEO, (
        "196x522 210x490 222x462 226x452 232x438 236x436 240x426 252x404 262x393 276x368 320x320 370x278 "
        "392x262 426x240 440x232 452x226 462x222"))),
    "360p": (230400, _table(_VIDEO, (
        "294x784 314x732 332x692 340x680 350x662 352x652 360x640 380x608 392x588 416x554 480x480 554x416 "
        "588x392 640x360 660x350 678x340 692x332"))),
    "512": (262144, _table(_IMAGE, _SIZES_256, 2)),
    "480p": (409920, _table(_VIDEO, (
        "392x1046 420x980 444x925 452x904 466x880 470x870 480x854 506x810 522x784 554x738 640x640 "
        "740x555 784x522 854x480 880x466 906x454 924x444"))),
    "720p": (921600, _table(_VIDEO, (
        "588x1568 628x1466 666x1388 678x1356 698x1318 706x1306 720x1280 758x1212 784x1176 832x1110 "
        "960x960 1108x832 1176x784 1280x720 1320x698 1358x680 1386x666"))),
    "1024": (1048576, _table(_IMAGE, _SIZES_256, 4)),
    "1080p": (2073600, _table(_VIDEO, (
        "882x2352 942x2198 998x2080 1018x2036 1048x1980 1058x1958 1080x1920 1138x1820 1176x1764 "
        "1248x1664 1440x1440 1662x1246 1764x1176 1920x1080 1980x1048 2036x1018 2078x998"))),
    "2k": (3686400, _table(_VIDEO, (
        "1176x3136 1256x2930 1330x2770 1358x2716 1398x2640 1412x2612 1440x2560 1518x2428 1568x2352 "
        "1662x2216 1920x1920 2218x1664 2352x1568 2560x1440 2638x1396 2716x1358 2772x1330"))),
    "2048": (4194304, _table(_IMAGE, _SIZES_256, 8)),
    "2880": (8294400, _table(_IMAGE_2880, (
        "1408x5760 1408x5568 1408x5376 1408x5184 1600x4992 1600x4800 1600x4672 1792x4480 1792x4288 "
        "1920x4096 1920x3904 1920x3776 2112x3840 2112x3584 2304x3392 2304x3200 2496x3200 2496x3008 "
        "2688x3008 2688x2880 2880x2880 2880x2688 3008x2688 3008x2496 3200x2496 3200x2304 3392x2304 "
        "3584x2112 3840x2112 3904x1920 4096x1920 4288x1792 4480x1792 4672x1600 4800x1600 4992x1600 "
        "5184x1408 5376x1408 5568x1408 5760x1408"))),
    "4k": (8294400, _table(_VIDEO_4K, (
        "1764x4704 1886x4400 1996x4158 2036x4072 2096x3960 2118x3918 2276x3642 2160x3840 2352x3528 "
        "2494x3326 2880x2880 3326x2494 3528x2352 3840x2160 3958x2096 4072x2036 4156x1994"))),
}


def get_image_size(resolution: str, ar_ratio: str) -> tuple[int, int]:
    """(height, width) of a named resolution at a ratio, named ("9:16") or by its two decimals ("0.56").

    Raises ValueError for an unknown resolution, and for a ratio that its table lacks (the image tables 256,
    512, 1024, 2048 and 2880 lack most of the named video ratios).
    """
    sizes = _resolution(resolution)[1]
    key = ASPECT_RATIO_MAP.get(ar_ratio, ar_ratio)
    if key not in sizes:
        named = [name for name, value in ASPECT_RATIO_MAP.items() if value in sizes]
        others = [ratio for ratio in sizes if ratio not in ASPECT_RATIO_MAP.values()]
        raise ValueError(f"aspect_ratio={ar_ratio!r} is not in the table of resolution={resolution!r}; "
                         f"allowed: {', '.join(named + others)}")
    return sizes[key]


def get_num_pixels(name: str) -> int:
    """Pixels per frame of a named resolution; ValueError for an unknown one."""
    return _resolution(name)[0]


def get_num_frames(num_frames: str | int) -> int:
    """Frames of a named length ("2s", "4x") or of a number; ValueError for anything else."""
    if num_frames in NUM_FRAMES_MAP:
        return NUM_FRAMES_MAP[num_frames]
    try:
        count = int(num_frames)
    except (TypeError, ValueError):
        count = 0
    if count < 1:
        raise ValueError(f"num_frames={num_frames!r}; "
                         f"allowed: a whole number from 1, or {', '.join(NUM_FRAMES_MAP)}")
    return count


def get_closest_ratio(height: float, width: float, ratios: dict[str, tuple[int, int]]) -> str:
    """Key of a resolution's table whose ratio is nearest to height / width."""
    return min(ratios, key=lambda ratio: abs(float(ratio) - height / width))


def get_h_w(a: float, ts: int, eps: float = 1e-4) -> tuple[int, int]:
    """Even (height, width) with height / width near `a` and about `ts` pixels.

    eps: keeps sides that are whole but for rounding errors from being rounded down.
    """
    height = _even((ts * a) ** 0.5 + eps)
    return height, _even(height / a + eps)


def _even(side: float) -> int:
    return math.ceil(side) if math.ceil(side) % 2 == 0 else math.floor(side)


def _resolution(name: str) -> tuple[int, dict[str, tuple[int, int]]]:
    if name not in ASPECT_RATIOS:
        raise ValueError(f"resolution={name!r}; allowed: {', '.join(ASPECT_RATIOS)}")
    return ASPECT_RATIOS[name]
