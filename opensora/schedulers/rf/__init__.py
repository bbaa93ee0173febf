"""RFLOW: rectified-flow sampling with classifier-free guidance, in one model call per step."""
from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from opensora.parallel import gathered, group_rank, group_size
from opensora.registry import SCHEDULERS
from opensora.schedulers.rf.rectified_flow import RectifiedFlow, expand

__all__ = ["RFLOW", "RectifiedFlow"]


@SCHEDULERS.register_module("rflow")
class RFLOW:
    """Euler steps along the predicted velocity, from noise to data.

    num_sampling_steps: steps of a run.  cfg_scale: guidance; 1 is the conditional model.  Further keywords as
    in `RectifiedFlow`.  Raises ValueError for fewer than 1 step, and for what is no number.
    """

    def __init__(self, num_sampling_steps: int = 10, num_timesteps: int = 1000, cfg_scale: float = 4.0,
                 **options: Any) -> None:
        for key, value in (("num_sampling_steps", num_sampling_steps), ("num_timesteps", num_timesteps)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{key}={value!r}; allowed: whole numbers from 1")
        if not isinstance(cfg_scale, int | float) or not math.isfinite(cfg_scale):
            raise ValueError(f"cfg_scale={cfg_scale!r}; allowed: a number")
        self.num_sampling_steps = num_sampling_steps
        self.num_timesteps = num_timesteps
        self.cfg_scale = cfg_scale
        self.flow = RectifiedFlow(num_timesteps, **options)

    @property
    def of_a_run(self) -> dict[str, Any]:
        """All that decides about a run, by config key; the other options are training's."""
        return {"num_sampling_steps": self.num_sampling_steps, "num_timesteps": self.num_timesteps,
                "cfg_scale": self.cfg_scale, "use_discrete_timesteps": self.flow.use_discrete_timesteps,
                "use_timestep_transform": self.flow.use_timestep_transform}

    @torch.no_grad()
    def sample(
        self, model: torch.nn.Module, text_encoder: Any, z: Tensor, prompts: list[str],
        device: torch.device | str, additional_args: dict[str, Tensor] | None = None,
        mask: Tensor | None = None, guidance_scale: float | None = None,
        progress: Callable[[int, int], None] | bool | None = None, cfg_ranks: ProcessGroup | None = None,
    ) -> Tensor:
        """Denoise z with guidance.

        z: noise (and given frames) [B, C, T, H, W].  text_encoder: `encode(prompts)` gives y [B, 1, L, C] and
        mask [B, L], `null(B)` the null captions.  additional_args: fps, height, width, num_frames, each [B].
        mask: [B, T], 1 generates a frame, 0 keeps it, between: it joins when the timestep falls below
        mask * 1000.  progress: called with (step, steps) after each step.  cfg_ranks: two ranks, of which the
        first computes conditional rows, the second unconditional ones; None: this one both.
        Returns: latents [B, C, T, H, W], the same on all ranks.
        """
        scale = self.cfg_scale if guidance_scale is None else guidance_scale
        text = text_encoder.encode(prompts)
        return self.denoise(model, z, torch.cat([text["y"], text_encoder.null(len(prompts))]), text["mask"],
                            device, additional_args, mask, scale, progress, cfg_ranks)

    @torch.no_grad()
    def denoise(
        self, model: torch.nn.Module, z: Tensor, y: Tensor, y_mask: Tensor | None, device: torch.device | str,
        sizes: dict[str, Tensor] | None, mask: Tensor | None, scale: float,
        progress: Callable[[int, int], None] | bool | None = None, cfg_ranks: ProcessGroup | None = None,
    ) -> Tensor:
        """`sample` once captions are embedded: y holds the conditional, then the null rows, [2B, 1, L, C]."""
        timesteps = self.flow.sampling_timesteps(self.num_sampling_steps, len(z), device, sizes)
        arguments = model_arguments(model, z, own_rows(y, cfg_ranks), y_mask, sizes)
        noised = None if mask is None else mask == 1  # [B, T], frames that have their noise already
        for step, t in enumerate(timesteps):
            if mask is not None:
                active = mask * self.num_timesteps >= t[:, None]  # [B, T]
                noisy = self.flow.add_noise(z, torch.randn_like(z), t)  # drawn at every step, as published
                z = torch.where((active & ~noised)[:, None, :, None, None], noisy, z)
                noised = active
                arguments["x_mask"] = own_rows(active.repeat(2, 1), cfg_ranks)
            velocity = guided_velocity(model, z, t, scale, arguments, cfg_ranks)
            after = timesteps[step + 1] if step + 1 < len(timesteps) else torch.zeros_like(t)
            moved = z + velocity * expand((t - after) / self.num_timesteps, z)
            z = moved if mask is None else torch.where(active[:, None, :, None, None], moved, z)
            if callable(progress):
                progress(step + 1, len(timesteps))
        return z

    def training_losses(self, model: torch.nn.Module, x_start: Tensor, model_kwargs: dict[str, Tensor],
                        **options: Any) -> dict[str, Tensor]:
        """See `RectifiedFlow.training_losses`; `model_kwargs` may hold num_frames, height and width."""
        sizes = {k: model_kwargs[k] for k in ("height", "width", "num_frames") if k in model_kwargs}
        return self.flow.training_losses(model, x_start, accepted(model, model_kwargs), sizes, **options)


def guided_velocity(model: torch.nn.Module, z: Tensor, t: Tensor, scale: float,
                    arguments: dict[str, Any], cfg_ranks: ProcessGroup | None = None) -> Tensor:
    """v = v_uncond + scale (v_cond - v_uncond), both rows in one call.  z: [B, C, T, H, W], t: [B].

    cfg_ranks: those that have one row each, and exchange what they predict; `arguments` are of the own rows.
    """
    rows, times = (own_rows(torch.cat([x, x]), cfg_ranks) for x in (z, t))
    prediction = model(rows, times, **arguments)[:, : z.shape[1]]
    if cfg_ranks is not None:
        prediction = gathered(prediction, 0, [len(z)] * 2, cfg_ranks)
    conditional, unconditional = prediction.chunk(2)
    return unconditional + scale * (conditional - unconditional)


def own_rows(both: Tensor, cfg_ranks: ProcessGroup | None) -> Tensor:
    """Of conditional, then unconditional rows [2B, ...] those that this rank computes."""
    return both.chunk(group_size(cfg_ranks))[group_rank(cfg_ranks)]


def model_arguments(model: torch.nn.Module, z: Tensor, y: Tensor, y_mask: Tensor | None,
                    sizes: dict[str, Tensor] | None) -> dict[str, Any]:
    """What every step passes to the model; a model with `prepare` embeds captions here, once for the run."""
    arguments = accepted(model, sizes or {})
    if hasattr(model, "prepare"):
        conditions = model.prepare(y, y_mask, z.shape[2:],
                                   *(arguments[name] for name in ("height", "width", "fps")))
        return {**arguments, "y": conditions}
    return {**arguments, "y": y, "mask": y_mask}


def accepted(model: torch.nn.Module, arguments: dict[str, Any]) -> dict[str, Any]:
    """Those arguments that the model's `forward` names (num_frames and ar only steer the timesteps)."""
    names = inspect.signature(getattr(model, "forward", model)).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in names.values()):
        return dict(arguments)
    return {k: v for k, v in arguments.items() if k in names}
