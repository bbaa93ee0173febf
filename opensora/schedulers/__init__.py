"""Samplers; importing this registers them."""
from opensora.schedulers import rf as rf
