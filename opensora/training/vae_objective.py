"""Losses of the autoencoder, in two stages: the 2D part on frames, then the temporal part on its latents.

A joint loss on videos from scratch needs many times the compute of these two.
"""
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opensora.models.vae.spatial import SCALING_FACTOR
from opensora.models.vae.vae import OpenSoraVAE


def pixel_loss(reconstruction: Tensor, target: Tensor) -> Tensor:
    """L1 on pixels, plus L1 on their differences along H and W (sharp edges).  [..., H, W]."""
    gap = reconstruction.float() - target.float()
    edges = gap.diff(dim=-1).abs().mean() + gap.diff(dim=-2).abs().mean()
    return gap.abs().mean() + 0.5 * edges


class SpatialObjective(nn.Module):
    """Frames -> 2D autoencoder -> frames.  kl_weight: per latent value."""

    def __init__(self, vae: OpenSoraVAE, kl_weight: float = 1e-6) -> None:
        super().__init__()
        self.module, self.kl_weight = vae.spatial_vae.module, kl_weight

    def forward(self, frames: Tensor) -> dict[str, Tensor]:  # [N, 3, H, W] in [-1, 1]
        frames = frames.to(self.module.device)
        posterior = self.module.encode(frames).latent_dist
        z = posterior.sample()
        reconstruction = self.module.decode(z).sample
        loss, kl = pixel_loss(reconstruction, frames), posterior.kl().mean() / z[0].numel()
        mse = (reconstruction.float() - frames).square().mean()
        return {"loss": loss + self.kl_weight * kl, "kl": kl, "psnr": 10 * torch.log10(4.0 / mse)}


class TemporalObjective(nn.Module):
    """17 frames of 2D latents -> 5 -> 17, the 2D part frozen; `decoded` frames are compared as pixels."""

    def __init__(self, vae: OpenSoraVAE, kl_weight: float = 1e-6, decoded: int = 2,
                 pixel_weight: float = 1.0) -> None:
        super().__init__()
        self.vae, self.kl_weight, self.decoded, self.pixel_weight = vae, kl_weight, decoded, pixel_weight

    def forward(self, video: Tensor) -> dict[str, Tensor]:  # [B, 3, 17, H, W] in [-1, 1]
        spatial, temporal, video = self.vae.spatial_vae, self.vae.temporal_vae, video.to(self.vae.device)
        with torch.no_grad():
            x_z = spatial.encode(video, sample=False)
        posterior = temporal.encode(x_z)
        x_z_rec = temporal.decode(posterior.sample(), video.shape[2])
        loss = F.mse_loss(x_z_rec.float(), x_z.float()) / SCALING_FACTOR**2
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        shown = torch.randperm(video.shape[2])[: self.decoded]
        reconstruction = spatial.decode(x_z_rec[:, :, shown])
        target = video[:, :, shown]
        pixels = pixel_loss(reconstruction, target)
        mse = (reconstruction.float() - target).square().mean()
        return {"loss": loss + self.pixel_weight * pixels + self.kl_weight * kl,
                "latent_loss": loss, "kl": kl, "psnr": 10 * torch.log10(4.0 / mse)}


@torch.no_grad()
def fit_shift_and_scale(vae: OpenSoraVAE, videos: list[Tensor]) -> None:
    """Set the buffers so that latents have mean 0, deviation 1 in every channel.  videos: [1, 3, T, H, W]."""
    shape = (1, vae.out_channels, 1, 1, 1)
    device = vae.device
    vae.shift, vae.scale = torch.zeros(shape, device=device), torch.ones(shape, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        z = torch.cat([vae.encode(v.to(device), sample=False).float() for v in videos])
    vae.shift = z.mean(dim=(0, 2, 3, 4)).view(shape)
    vae.scale = z.std(dim=(0, 2, 3, 4)).view(shape)
