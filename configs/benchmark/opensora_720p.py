"""The released model's size at 720p and 2 s, bf16, with random weights: for a GPU."""
_base_ = "opensora_480p.py"
resolution = "720p"
