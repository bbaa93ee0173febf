"""Clips: rendered (shapes), read from a CSV, or encoded before; importing this registers them."""
from opensora.datasets import latents as latents
from opensora.datasets import shapes as shapes
from opensora.datasets import video_csv as video_csv
