"""Images and clips of 2 to 4 s at 144p."""
_base_ = "base.py"
bucket_config = {"144p": {1: (1.0, 64), 51: (1.0, 6), 102: ((1.0, 0.33), 3)}}
loop = dict(steps=10_000)
out = "outputs/opensora/144p"
