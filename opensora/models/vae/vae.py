"""OpenSoraVAE v1.2: a 2D autoencoder on frames, a causal temporal one on its latents, a shift and scale.

Legend: B videos, T frames, t latent frames (17 -> 5), H x W pixels.
"""
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from opensora.models.vae.distribution import DiagonalGaussian
from opensora.models.vae.spatial import SpatialVAE
from opensora.models.vae.temporal import TemporalVAE
from opensora.parallel import shared_out
from opensora.registry import MODELS
from opensora.utils.weights import load_weights, read_config


class OpenSoraVAE(nn.Module):
    """Latents of a video: `(z - shift) / scale`, [B, 4, t, H/8, W/8].

    micro_frame_size: frames that are encoded independently of the others (17; None: all).
    shift, scale: per channel or one number; buffers of the state dict, so a checkpoint's values win.
    freeze_vae_2d: the 2D part gets no gradient.
    """

    def __init__(
        self,
        spatial_config: dict | None = None,
        temporal_config: dict | None = None,
        micro_frame_size: int | None = 17,
        micro_batch_size: int | None = 4,
        shift: float | tuple[float, ...] = (-0.10, 0.34, 0.27, 0.98),
        scale: float | tuple[float, ...] = (3.85, 2.32, 2.33, 3.06),
        freeze_vae_2d: bool = False,
    ) -> None:
        super().__init__()
        self.spatial_vae = SpatialVAE(spatial_config, micro_batch_size)
        self.temporal_vae = TemporalVAE(**(temporal_config or {}))
        self.micro_frame_size = micro_frame_size
        self.micro_z_frame_size = micro_frame_size and self.temporal_vae.latent_frames(micro_frame_size)
        self.out_channels = self.temporal_vae.post_quant_conv.conv.in_channels
        for name, value in (("shift", shift), ("scale", scale)):
            tensor = torch.tensor(value, dtype=torch.float32)
            self.register_buffer(name, tensor[None, :, None, None, None] if tensor.ndim else tensor)
        if freeze_vae_2d:
            self.spatial_vae.requires_grad_(False)

    def get_latent_size(self, input_size: tuple[int | None, int, int]) -> list[int | None]:
        """(T, H, W) in frames and pixels -> (t, h, w) of the latents.  T None stays None."""
        frames, height, width = input_size
        t = None
        if frames is not None:
            whole, rest = divmod(frames, self.micro_frame_size) if self.micro_frame_size else (0, frames)
            t = whole * (self.micro_z_frame_size or 0) + self.temporal_vae.latent_frames(rest)
        return [t, height // self.spatial_vae.downsampling, width // self.spatial_vae.downsampling]

    def encode(self, x: Tensor, sample: bool = True) -> Tensor:
        """x: [B, 3, T, H, W] in [-1, 1].  Returns latents [B, 4, t, H/8, W/8].

        sample: draw from both posteriors (published); False takes their means.
        """
        x_z = self.spatial_vae.encode(x, sample)
        posteriors = [self.temporal_vae.encode(c)
                      for c in x_z.split(self.micro_frame_size or x_z.shape[2], dim=2)]
        z = torch.cat([p.sample() if sample else p.mean for p in posteriors], dim=2)
        return (z - self.shift) / self.scale

    def decode(self, z: Tensor, num_frames: int, ranks: ProcessGroup | None = None) -> Tensor:
        """z: latents [B, 4, t, h, w].  Returns pixels [B, 3, num_frames, 8h, 8w].

        ranks: that have the same z and share the work, micro chunks over time, then frames; all get all.
        Raises ValueError where `num_frames` is not a length that has t latent frames.
        """
        expected = self.get_latent_size((num_frames, 0, 0))[0]
        if z.shape[2] != expected:
            raise ValueError(f"num_frames={num_frames} has {expected} latent frames, but z has {z.shape[2]}")
        z = z * self.scale.to(z.dtype) + self.shift.to(z.dtype)
        return self.spatial_vae.decode(self._decode_time(z, num_frames, ranks), ranks)

    def reconstruct(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, DiagonalGaussian, Tensor]:
        """For training.  Returns (x_rec, x_z_rec, z, posterior, x_z): pixels, 2D latents, latents, unscaled.

        The posterior is that of the last micro chunk, as published.
        """
        x_z = self.spatial_vae.encode(x)
        posteriors = [self.temporal_vae.encode(c)
                      for c in x_z.split(self.micro_frame_size or x_z.shape[2], dim=2)]
        z = torch.cat([p.sample() for p in posteriors], dim=2)
        x_z_rec = self._decode_time(z, x.shape[2])
        return self.spatial_vae.decode(x_z_rec), x_z_rec, z, posteriors[-1], x_z

    def _decode_time(self, z: Tensor, num_frames: int, ranks: ProcessGroup | None = None) -> Tensor:
        frames = self.micro_frame_size or num_frames
        chunks = z.split(self.micro_z_frame_size or z.shape[2], dim=2)
        lengths = [min(frames, num_frames - i * frames) for i in range(len(chunks))]

        def of(some: slice) -> Tensor:
            return torch.cat([self.temporal_vae.decode(chunk, length)
                              for chunk, length in zip(chunks[some], lengths[some], strict=True)], dim=2)

        return shared_out(of, lengths, 2, ranks)

    @property
    def device(self) -> torch.device:
        return self.shift.device

    @property
    def dtype(self) -> torch.dtype:
        return self.shift.dtype


@MODELS.register_module("OpenSoraVAE_V1_2")
def opensora_vae_v1_2(
    from_pretrained: str | None = None,
    micro_frame_size: int | None = 17,
    micro_batch_size: int | None = 4,
    local_files_only: bool = False,
    cache_dir: str | None = None,
    freeze_vae_2d: bool = False,
    **sizes,
) -> OpenSoraVAE:
    """The published autoencoder, or one of another size.

    from_pretrained: folder or hub id in Hugging Face layout, or a weights file.  Its config.json may hold
    `spatial_config` and `temporal_config`; the released one holds neither, and the published sizes are used.
    The checkpoint has the 2D part's weights too, so that nothing else is fetched.
    """
    stored = read_config(from_pretrained, local_files_only, cache_dir) if from_pretrained else {}
    known = {k: stored[k] for k in ("spatial_config", "temporal_config") if k in stored}
    model = OpenSoraVAE(**{**known, **sizes}, micro_frame_size=micro_frame_size,
                        micro_batch_size=micro_batch_size, freeze_vae_2d=freeze_vae_2d)
    if from_pretrained:
        load_weights(model, from_pretrained, local_files_only=local_files_only, cache_dir=cache_dir)
    return model
