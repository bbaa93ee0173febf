"""Importing this lets colossalai 0.5.0 work on a CPU, which has none of the random numbers it asks for."""
import torch
from colossalai.accelerator.cpu_accelerator import CpuAccelerator

CpuAccelerator.manual_seed = lambda self, seed: torch.manual_seed(seed)
CpuAccelerator.get_rng_state = lambda self, device=None: torch.get_rng_state()
CpuAccelerator.set_rng_state = lambda self, state, device=None: torch.set_rng_state(state)
