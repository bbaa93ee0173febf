"""Clips: rendered (shapes) or read from a CSV; prompts' references; sizes."""
from opensora.datasets import shapes as shapes
