"""The training loop: resumes at any step with the same result, keeps an EMA, leaves no half checkpoint."""
from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from opensora.parallel import of_all_processes, rank, world_size
from opensora.training.checkpoint import newest_checkpoint, read_checkpoint, write_checkpoint
from opensora.training.curve import LossCurve
from opensora.training.optimizers import build_optimizers, learning_rate_factor
from opensora.training.sharding import shard, whole
from opensora.utils.config import is_number, is_whole

logger = logging.getLogger(__name__)

Objective = Callable[[Any], dict[str, Tensor]]  # batch -> {"loss": scalar, ...}
BatchAt = Callable[[int], Any]                  # index -> batch; step s takes n of them, from index s * n


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How to train.  lr falls linearly to zero over the last `decay_fraction` of `steps`.

    batches: n, of a step, over all ranks together; None: as many as the folder's run had, or one per rank.
    So another number of ranks goes on as that would have; where it does not divide n, some ranks have less to
    do than others, and with fewer batches than ranks nothing.  shard: split weights, and all that belongs to
    them, over the ranks, whose number then divides n; such a run, when stopped, goes on from the last
    `ckpt_every`.
    """

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
    batches: int | None = None
    shard: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in ("bf16", "fp32"):
            raise ValueError(f"dtype={self.dtype!r}; allowed: bf16, fp32")
        for name, least in (("steps", 1), ("log_every", 1), ("ckpt_every", 1), ("warmup", 0), ("seed", 0)):
            if not (is_whole(value := getattr(self, name)) and value >= least):
                raise ValueError(f"{name}={value!r}; allowed: whole numbers from {least}")
        if self.batches is not None and not (is_whole(self.batches) and self.batches >= 1):
            raise ValueError(f"batches={self.batches!r}; allowed: whole numbers from 1, or None")
        for name, most in (("lr", math.inf), ("muon_lr", math.inf), ("weight_decay", math.inf),
                           ("grad_clip", math.inf), ("decay_fraction", 1), ("ema_decay", 1)):
            value = getattr(self, name)
            if not (is_number(value) and 0 <= value <= most or value is None and name == "muon_lr"):
                raise ValueError(f"{name}={value!r}; allowed: 0 to {most if most == 1 else 'any number'}")
        if self.shard and self.muon_lr is not None:
            raise ValueError(f"muon_lr={self.muon_lr} with shard=True; allowed: None, as Muon needs whole "
                             "matrices")


def batches_per_step(config: LoopConfig, folder: str | Path) -> int:
    """n, of the run in `folder`.  Every process has to ask; raises ValueError as `newest_of_all`."""
    if config.batches is not None:
        return config.batches
    if (path := newest_of_all(Path(folder))) is None:
        return world_size()
    read_checkpoint(path, state := {"loop": {"step": 0, "batches": 0}})
    return state["loop"]["batches"]


def newest_of_all(folder: Path) -> Path | None:
    """The checkpoint to go on from.  Raises ValueError where not all processes see the same."""
    path = newest_checkpoint(folder)
    seen = of_all_processes([path.name if path else "none"])
    if len(set(seen)) > 1:
        raise ValueError(f"{str(folder)!r} has the checkpoints {', '.join(seen)}, rank by rank; allowed: a "
                         "folder that all ranks share")
    return path


class TrainingRun:
    """One run in one folder: `checkpoint-STEP/`, `loss.csv`, `loss.png`.

    Random numbers and batch depend on the seed and the batch's index alone, so a run that was stopped and
    resumed ends with the weights of one that was not.
    Raises ValueError where the folder's checkpoint is of another number of batches per step, beyond the last
    step, or not the same on all ranks.
    """

    def __init__(self, module: nn.Module, objective: Objective, batch_at: BatchAt, config: LoopConfig,
                 folder: str | Path) -> None:
        self.module, self.objective, self.batch_at, self.config = module, objective, batch_at, config
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.device = next(module.parameters()).device
        self.rank, self.world_size = rank(), world_size()
        self.ema = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
        self.sharded = config.shard and self.world_size > 1
        if self.sharded:
            self.averaged = copy.deepcopy(module).cpu()
            shard(module)
            shard(self.ema.module)
        self.optimizers = build_optimizers(module, config.lr, config.weight_decay, muon_lr=config.muon_lr)
        self.parameters = [p for group in self._groups() for p in group["params"]]
        self.step = self.saved = 0
        self.batches = batches_per_step(config, self.folder)
        self.between_steps = True  # False while weights change
        self.resume()

    def resume(self) -> None:
        path, settings = newest_of_all(self.folder), self._settings()
        if path is not None:
            read_checkpoint(path, state := self._state())
            set_state_dict(self.module, self.optimizers, model_state_dict=state["module"],
                           optim_state_dict=state["optimizers"])
            self.ema.load_state_dict(state["ema"])
            self.step = self.saved = state["loop"]["step"]
            if (batches := state["loop"]["batches"]) != self.batches:
                raise ValueError(f"batches={self.batches}, but {batches} when {str(path)!r} was written; "
                                 f"allowed: {batches}, None")
        elif (path := self.folder / "checkpoint.pt").exists():
            self._resume_earlier_format(path)
        if self.step > self.config.steps:
            raise ValueError(f"steps={self.config.steps}, but {str(path)!r} is at step {self.step}; allowed: "
                             "as many or more, or another folder")
        for group, own in zip(self._groups(), settings, strict=True):
            group.update(own)  # a checkpoint has those of the run that wrote it
        if self.sharded and self.batches % self.world_size:
            raise ValueError(f"batches={self.batches} on {self.world_size} ranks with shard=True; allowed: "
                             f"multiples of {self.world_size}")
        if self.step:
            logger.info("resumed %s at step %d", path, self.step)
        if self.batches < self.world_size:
            logger.warning("batches=%d on %d ranks: some have nothing to do", self.batches, self.world_size)

    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def _settings(self) -> list[dict[str, Any]]:
        """Of the config, for each group of parameters."""
        return [{key: group[key] for key in ("peak_lr", "weight_decay") if key in group}
                for group in self._groups()]

    def save(self) -> None:
        """Once for a step.  Where the model is sharded, all ranks have to call this together."""
        if self.step > self.saved:
            if self.sharded or self.rank == 0:
                write_checkpoint(self.folder, self.step, self._state(), together=self.sharded)
            self.saved = self.step

    def _state(self) -> dict[str, Any]:
        module, optimizers = get_state_dict(self.module, self.optimizers)
        return {"module": module, "optimizers": optimizers, "ema": self.ema.state_dict(),
                "loop": {"step": self.step, "batches": self.batches}}

    def _resume_earlier_format(self, path: Path) -> None:
        """One file, which runs before `checkpoint-STEP/` wrote."""
        if self.sharded:
            raise ValueError(f"shard=True goes on from no {str(path)!r}; allowed: shard=False until there is "
                             "a checkpoint-STEP")
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.module.load_state_dict(state["module"])
        self.ema.load_state_dict(state["ema"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step = state["step"]

    def run(self, on_log: Callable[[dict[str, float]], None] = lambda row: None) -> nn.Module:
        """Train to `config.steps` and return the averaged (EMA) module.  Ctrl-C saves first."""
        curve = LossCurve(self.folder, self.step) if self.rank == 0 else None
        started, since = time.perf_counter(), []
        try:
            while self.step < self.config.steps:
                since.append(self.train_step())
                if self.step % self.config.log_every == 0 or self.step == self.config.steps:
                    row = self._log_row(since, time.perf_counter() - started)
                    started, since = time.perf_counter(), []
                    on_log(row)
                    if curve:
                        curve.add(row)
                if self.step % self.config.ckpt_every == 0:
                    self.save()
            self.save()
        except BaseException:
            if self.between_steps and not self.sharded:  # other ranks may have stopped at another step
                self.save()
            raise
        finally:
            if curve and curve.rows():
                curve.plot()
        return self._averaged()

    def _averaged(self) -> nn.Module:
        """The averaged module, whole on every rank."""
        if not self.sharded:
            return self.ema.module
        state = {name: whole(value).cpu() for name, value in self.ema.module.state_dict().items()}
        self.averaged.load_state_dict(state)
        return self.averaged

    def train_step(self) -> dict[str, Tensor]:
        config = self.config
        losses = self._accumulate_gradients()
        losses["grad_norm"] = whole(nn.utils.clip_grad_norm_(self.parameters, config.grad_clip))
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

    def _accumulate_gradients(self) -> dict[str, Tensor]:
        """Of this step's batches, their mean over all ranks; the losses are this rank's, if it has any."""
        first = self.step * self.batches
        own = range(first + self.rank, first + self.batches, self.world_size)
        rows = []
        for index in own:
            torch.manual_seed(self.config.seed + 1_000_003 * index)
            batch = self.batch_at(index)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.dtype == "bf16"):
                losses = self.objective(batch)
            (losses["loss"] / (self.batches / self.world_size)).backward()  # the ranks' mean comes after it
            rows.append({name: value.detach() for name, value in losses.items()})
        for parameter in self.parameters:
            if parameter.grad is None:  # no batch of this rank used it, perhaps one of another
                parameter.grad = torch.zeros_like(parameter)
        if self.world_size > 1 and not self.sharded:  # else each unit averaged its own on the way back
            self._average_gradients()
        return {name: torch.stack([row[name] for row in rows]).mean(0) for name in (rows[0] if rows else ())}

    def _average_gradients(self) -> None:
        """Mean over ranks, as one message."""
        grads = [p.grad for p in self.parameters]
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
