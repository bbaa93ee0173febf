"""Images and clips of 2 to 16 s from 144p to 720p, larger ones less often."""
_base_ = "base.py"
bucket_config = {
    "144p": {1: (1.0, 64), 51: (1.0, 6), 102: ((1.0, 0.33), 3), 204: ((1.0, 0.1), 1)},
    "240p": {1: (0.3, 32), 51: (0.4, 3), 102: ((0.4, 0.33), 1)},
    "480p": {1: (0.5, 8), 51: (0.5, 1)},
    "720p": {1: (0.2, 4)},
}
loop = dict(steps=20_000)
out = "outputs/opensora/multi_resolution"
