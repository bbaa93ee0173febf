"""The 2D autoencoder (diffusers' AutoencoderKL), run frame by frame in micro batches.

Legend: B videos, T frames, H x W pixels.
"""
from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import AutoencoderKL
from einops import rearrange
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from opensora.parallel import shared_out

# published: the SD factor, though the SDXL autoencoder was trained with 0.13025
SCALING_FACTOR = 0.18215
# PixArt-alpha/pixart_sigma_sdxlvae_T5_diffusers, subfolder vae
SDXL_CONFIG = dict(
    in_channels=3, out_channels=3, latent_channels=4, layers_per_block=2, norm_num_groups=32,
    sample_size=1024, block_out_channels=(128, 256, 512, 512),
    down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
)


class SpatialVAE(nn.Module):
    """Encodes each frame 8 times smaller.  micro_batch_size: frames in memory at once (None: all)."""

    def __init__(self, config: dict | None = None, micro_batch_size: int | None = None) -> None:
        super().__init__()
        self.module = AutoencoderKL(**(config or SDXL_CONFIG))
        self.downsampling = 2 ** (len(self.module.config.block_out_channels) - 1)
        self.micro_batch_size = micro_batch_size

    def encode(self, x: Tensor, sample: bool = True) -> Tensor:  # [B, 3, T, H, W] -> [B, 4, T, H/8, W/8]
        def encode_frames(frames: Tensor) -> Tensor:
            posterior = self.module.encode(frames).latent_dist
            return posterior.sample() if sample else posterior.mean

        return SCALING_FACTOR * self._by_frame(encode_frames, x)

    def decode(self, z: Tensor, ranks: ProcessGroup | None = None) -> Tensor:
        """ranks: that share the frames; all get all."""
        return self._by_frame(lambda frames: self.module.decode(frames).sample, z / SCALING_FACTOR, ranks)

    def _by_frame(self, function: Callable[[Tensor], Tensor], x: Tensor,
                  ranks: ProcessGroup | None = None) -> Tensor:
        frames = rearrange(x, "b c t h w -> (b t) c h w")

        def of(some: slice) -> Tensor:
            chunks = frames[some].split(self.micro_batch_size or len(frames))
            return torch.cat([function(chunk) for chunk in chunks])

        done = shared_out(of, [1] * len(frames), 0, ranks)
        return rearrange(done, "(b t) c h w -> b c t h w", b=len(x))
