"""Rectified flow: x_t = (1 - t) x_0 + t noise, v = x_0 - noise, timesteps from 1000 (noise) to 0 (data).

Liu et al., "Flow Straight and Fast" (arXiv 2209.03003); timestep shift by size as in Open-Sora v1.2.
Legend: B videos, C channels, T latent frames, H x W latent pixels.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def expand(t: Tensor, x: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, ...], to multiply x."""
    return t.reshape(-1, *(1,) * (x.ndim - 1))


def latent_frames(num_frames: Tensor) -> Tensor:
    """Frames -> latent frames as the published shift counts them: 17 -> 5, the rest of a division dropped.

    Fewer than 17 frames, where that count is 0 and the shift NaN, count as the autoencoder has them: 4 -> 1.
    """
    return torch.where(num_frames < 17, torch.ceil(num_frames / 4), num_frames // 17 * 5)


def timestep_transform(
    t: Tensor, sizes: Mapping[str, Tensor], base_resolution: int = 512 * 512, scale: float = 1.0,
    num_timesteps: int = 1000,
) -> Tensor:
    """Shift timesteps towards noise, the more the larger the video: t -> r t / (1 + (r - 1) t).

    t: [B], or [steps, B].  sizes: `height`, `width`, `num_frames` in pixels and frames, [B]; their product
    overflows fp16.
    """
    height, width, frames = (
        v.float() if v.dtype == torch.float16 else v
        for v in (sizes["height"], sizes["width"], sizes["num_frames"])
    )
    ratio = (height * width / base_resolution).sqrt() * latent_frames(frames).sqrt() * scale
    t = t / num_timesteps
    return ratio * t / (1 + (ratio - 1) * t) * num_timesteps


class RectifiedFlow:
    """Timesteps, noising, and the training loss.

    sample_method: how training draws t: "uniform" or "logit-normal" (loc, logit_scale).
    """

    SAMPLE_METHODS = ("uniform", "logit-normal")

    def __init__(
        self, num_timesteps: int = 1000, use_discrete_timesteps: bool = False,
        use_timestep_transform: bool = False, transform_scale: float = 1.0, sample_method: str = "uniform",
        loc: float = 0.0, logit_scale: float = 1.0,
    ) -> None:
        if sample_method not in self.SAMPLE_METHODS:
            raise ValueError(f"sample_method={sample_method!r}; allowed: {', '.join(self.SAMPLE_METHODS)}")
        self.num_timesteps = num_timesteps
        self.use_discrete_timesteps = use_discrete_timesteps
        self.use_timestep_transform = use_timestep_transform
        self.transform_scale = transform_scale
        self.sample_method, self.loc, self.logit_scale = sample_method, loc, logit_scale

    def sampling_timesteps(self, steps: int, rows: int, device: torch.device | str,
                           sizes: Mapping[str, Tensor] | None) -> list[Tensor]:
        """The timesteps of a run, first to last, each [rows].

        Raises ValueError where the shift is on and no sizes are given.
        """
        t = [(1.0 - i / steps) * self.num_timesteps for i in range(steps)]
        if self.use_discrete_timesteps:
            t = [round(value) for value in t]
        timesteps = torch.tensor(t, device=device)[:, None].repeat(1, rows)
        if not self.use_timestep_transform:
            return list(timesteps)
        if not sizes or not {"height", "width", "num_frames"} <= set(sizes):
            raise ValueError("use_timestep_transform=True needs additional_args with height, width and "
                             "num_frames")
        # the sampler shifts by size alone; transform_scale belongs to training, as published
        return list(timestep_transform(timesteps, sizes, num_timesteps=self.num_timesteps))

    def draw_timesteps(self, x: Tensor, sizes: Mapping[str, Tensor] | None) -> Tensor:
        """One random timestep for each video of a training batch, [B]."""
        rows = len(x)
        if self.use_discrete_timesteps:
            t = torch.randint(0, self.num_timesteps, (rows,), device=x.device).float()
        elif self.sample_method == "uniform":
            t = torch.rand(rows, device=x.device) * self.num_timesteps
        else:
            normal = torch.randn(rows, device=x.device)
            t = torch.sigmoid(self.loc + self.logit_scale * normal) * self.num_timesteps
        if self.use_timestep_transform:
            t = timestep_transform(t, sizes, scale=self.transform_scale, num_timesteps=self.num_timesteps)
        return t

    def add_noise(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x, noise: [B, C, T, H, W].  t: [B], 0 gives x, num_timesteps gives noise."""
        signal = expand(1 - t.float() / self.num_timesteps, x)
        return signal * x + (1 - signal) * noise

    def training_losses(
        self, model: Callable[..., Tensor], x_start: Tensor, model_kwargs: dict[str, Tensor],
        sizes: Mapping[str, Tensor] | None = None, noise: Tensor | None = None, mask: Tensor | None = None,
        weights: Tensor | None = None, t: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Mean squared error of the velocity.

        x_start: latents [B, C, T, H, W].  mask: [B, T], True where a frame is noised and counts (False:
        given, clean, not counted).  weights: [B].  t: [B].  Returns: {"loss": [B]}.
        """
        t = self.draw_timesteps(x_start, sizes) if t is None else t
        noise = torch.randn_like(x_start) if noise is None else noise
        x_t = self.add_noise(x_start, noise, t)
        if mask is not None:
            x_t = torch.where(mask[:, None, :, None, None], x_t, x_start)
            model_kwargs = {**model_kwargs, "x_mask": mask}
        velocity = model(x_t, t, **model_kwargs)[:, : x_start.shape[1]]
        error = (velocity - (x_start - noise)).square().mean(dim=(1, 3, 4))  # [B, T]
        loss = error.mean(dim=1) if mask is None else (error * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
        return {"loss": loss if weights is None else loss * weights}
