"""The training loop: resumes at any step with the same result, keeps an EMA, leaves no half checkpoint."""
from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from opensora.parallel import rank, world_size
from opensora.training.curve import LossCurve
from opensora.training.optimizers import build_optimizers, learning_rate_factor

logger = logging.getLogger(__name__)

Objective = Callable[[Any], dict[str, Tensor]]  # batch -> {"loss": scalar, ...}
BatchAt = Callable[[int], Any]                  # index -> batch; rank r of w takes index step * w + r


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How to train.  lr falls linearly to zero over the last `decay_fraction` of `steps`."""

    steps: int
    lr: float
    muon_lr: float | None = None
    weight_decay: float = 0.0
    warmup: int = 100
    decay_fraction: float = 0.5
    grad_clip: float = 1.0
    ema_decay: float = 0.995
    dtype: str = "bf16"
    log_every: int = 20
    ckpt_every: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        if self.dtype not in ("bf16", "fp32"):
            raise ValueError(f"dtype={self.dtype!r}; allowed: bf16, fp32")
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}; allowed: 1 or more")


class TrainingRun:
    """One run in one folder: `checkpoint.pt`, `loss.csv`, `loss.png`.

    The random numbers and the batch of a step depend on seed, rank and step alone, so a run that was stopped
    and resumed ends with the weights of one that was not.
    """

    def __init__(self, module: nn.Module, objective: Objective, batch_at: BatchAt, config: LoopConfig,
                 folder: str | Path) -> None:
        self.module, self.objective, self.batch_at, self.config = module, objective, batch_at, config
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.device = next(module.parameters()).device
        self.rank, self.world_size = rank(), world_size()
        self.optimizers = build_optimizers(module, config.lr, config.weight_decay, muon_lr=config.muon_lr)
        self.parameters = [p for o in self.optimizers for g in o.param_groups for p in g["params"]]
        self.ema = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay),
                                 use_buffers=True)
        self.step = 0
        self.between_steps = True  # False while weights change
        self.resume()

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def resume(self) -> None:
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            self.module.load_state_dict(state["module"])
            self.ema.load_state_dict(state["ema"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.step = state["step"]
            logger.info("resumed %s at step %d", self.folder, self.step)

    def save(self) -> None:
        if self.rank == 0:
            state = {"step": self.step, "module": self.module.state_dict(), "ema": self.ema.state_dict(),
                     "optimizers": [o.state_dict() for o in self.optimizers]}
            torch.save(state, self.checkpoint.with_suffix(".part"))
            os.replace(self.checkpoint.with_suffix(".part"), self.checkpoint)

    def run(self, on_log: Callable[[dict[str, float]], None] = lambda row: None) -> nn.Module:
        """Train to `config.steps` and return the averaged (EMA) module.  Ctrl-C saves first."""
        curve = LossCurve(self.folder, self.step) if self.rank == 0 else None
        started, since = time.perf_counter(), []
        try:
            while self.step < self.config.steps:
                since.append({k: v.detach() for k, v in self.train_step().items()})
                if self.step % self.config.log_every == 0 or self.step == self.config.steps:
                    row = self._log_row(since, time.perf_counter() - started)
                    started, since = time.perf_counter(), []
                    on_log(row)
                    if curve:
                        curve.add(row)
                if self.step % self.config.ckpt_every == 0:
                    self.save()
        finally:
            if self.between_steps:
                self.save()
            if curve and curve.rows():
                curve.plot()
        return self.ema.module

    def train_step(self) -> dict[str, Tensor]:
        config = self.config
        index = self.step * self.world_size + self.rank
        torch.manual_seed(config.seed + 1_000_003 * index)
        batch = self.batch_at(index)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.dtype == "bf16"):
            losses = self.objective(batch)
        losses["loss"].backward()
        self._average_gradients()
        losses["grad_norm"] = nn.utils.clip_grad_norm_(self.parameters, config.grad_clip)
        self.between_steps = False
        factor = learning_rate_factor(self.step, config.steps, config.warmup, config.decay_fraction)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
            # a step whose gradient is not finite would spoil weights and EMA for good
            if torch.isfinite(losses["grad_norm"]):  # device sync
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.ema.update_parameters(self.module)
        self.step += 1
        self.between_steps = True
        return losses

    def _average_gradients(self) -> None:
        """Mean over ranks, as one message."""
        if self.world_size == 1:
            return
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        flat = torch.cat([g.flatten() for g in grads])
        dist.all_reduce(flat)
        flat /= self.world_size
        for p, g, mean in zip(self.parameters, grads, flat.split([g.numel() for g in grads]), strict=True):
            p.grad = mean.view_as(g)

    def _log_row(self, losses: list[dict[str, Tensor]], seconds: float) -> dict[str, float]:
        row = {"step": self.step, "steps_per_second": len(losses) / seconds,
               "lr": self.optimizers[-1].param_groups[0]["lr"]}
        return row | {k: torch.stack([x[k].float() for x in losses if k in x]).mean().item()
                      for k in losses[-1]}
