"""Optimisers and learning rates: Muon for the matrices of a transformer, AdamW for everything else."""
from __future__ import annotations

import torch
from torch import nn


def build_optimizers(module: nn.Module, lr: float, weight_decay: float = 0.0,
                     betas: tuple[float, float] = (0.9, 0.99),
                     muon_lr: float | None = None) -> list[torch.optim.Optimizer]:
    """AdamW for all trainable parameters; with `muon_lr`, Muon takes the matrices inside blocks.

    Embeddings, tables and output layers stay with AdamW, as Muon's authors advise.
    """
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    if not named:
        raise ValueError("no trainable parameters: everything is frozen")
    matrices = [p for n, p in named if muon_lr and p.ndim == 2 and "block" in n and "table" not in n]
    chosen = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in chosen]
    optimizers: list[torch.optim.Optimizer] = []
    if rest:
        optimizers.append(torch.optim.AdamW(rest, lr=lr, betas=betas, weight_decay=weight_decay))
    if matrices:
        optimizers.append(torch.optim.Muon(matrices, lr=muon_lr, weight_decay=weight_decay,
                                           adjust_lr_fn="match_rms_adamw"))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def learning_rate_factor(step: int, steps: int, warmup: int, decay_fraction: float) -> float:
    """Linear warm-up, then constant, then linear to zero over the last `decay_fraction` of `steps`."""
    rise = min(1.0, (step + 1) / max(1, warmup))
    fall = min(1.0, (steps - step) / max(1.0, decay_fraction * steps)) if decay_fraction else 1.0
    return rise * max(0.0, fall)
