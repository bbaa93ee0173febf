"""What enters the transformer: patches, positions, timestep, frame rate, caption.

Legend: B rows, T frames, H x W latent pixels, C width, L caption tokens.
"""
from __future__ import annotations

import math

import torch
from einops import rearrange
from timm.layers import Mlp
from torch import Tensor, nn
from torch.nn import functional as F


class PatchEmbed3D(nn.Module):
    """Latents -> tokens; odd sizes are padded with zeros at the end of each axis."""

    def __init__(self, patch_size: tuple[int, int, int], in_channels: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv3d(in_channels, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:  # [B, C_in, T, H, W] -> [B, (T H W), C]
        (t, h, w), (pt, ph, pw) = x.shape[2:], self.patch_size
        if w % pw or h % ph or t % pt:  # padding by nothing is a copy
            x = F.pad(x, (0, -w % pw, 0, -h % ph, 0, -t % pt))
        # a convolution whose stride is its kernel is a matrix product, and much faster as one on CPU
        patches = rearrange(x, "b c (t p) (h q) (w r) -> b (t h w) (c p q r)", p=pt, q=ph, r=pw)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


def timestep_embedding(t: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """Sinusoids of t: [N] -> [N, dim], cosines first, fp32; an odd `dim` ends with a zero."""
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=t.device) / half
    angles = t[:, None].float() * torch.exp(-math.log(max_period) * exponents)[None]
    sinusoids = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return F.pad(sinusoids, (0, 1)) if dim % 2 else sinusoids


class TimestepEmbedder(nn.Module):
    """Scalars -> vectors: [B] -> [B, C]."""

    def __init__(self, hidden_size: int, frequency_size: int = 256) -> None:
        super().__init__()
        self.frequency_size = frequency_size
        self.mlp = nn.Sequential(nn.Linear(frequency_size, hidden_size), nn.SiLU(),
                                 nn.Linear(hidden_size, hidden_size))

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(timestep_embedding(t, self.frequency_size).to(self.mlp[0].weight.dtype))


class SizeEmbedder(TimestepEmbedder):
    """A scalar of each row (frames per second); fewer values than rows are repeated (guidance)."""

    def forward(self, s: Tensor, rows: int) -> Tensor:  # [b] -> [rows, C]
        return super().forward(s.repeat(rows // len(s)) if len(s) != rows else s)


class CaptionEmbedder(nn.Module):
    """Text embeddings -> caption tokens; in training a caption is replaced by the null one now and then.

    y_embedding: the null caption [L, C_text], a buffer of the published state dict.
    """

    def __init__(self, in_channels: int, hidden_size: int, uncond_prob: float, token_num: int) -> None:
        super().__init__()
        self.y_proj = Mlp(in_channels, hidden_size, hidden_size,
                          act_layer=lambda: nn.GELU(approximate="tanh"))
        self.register_buffer("y_embedding", torch.randn(token_num, in_channels) / in_channels**0.5)
        self.uncond_prob = uncond_prob

    def drop(self, y: Tensor) -> Tensor:  # [B, 1, L, C_text]
        dropped = torch.rand(len(y), device=y.device) < self.uncond_prob
        return torch.where(dropped[:, None, None, None], self.y_embedding[: y.shape[2]].to(y.dtype), y)

    def forward(self, y: Tensor) -> Tensor:
        return self.y_proj(y)


class PositionEmbedding2D(nn.Module):
    """Sinusoids of patch positions, scaled so that all resolutions share one coordinate system."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim % 4:
            raise ValueError(f"hidden_size={dim}; allowed: a multiple of 4 (2D position embedding)")
        half = dim // 2
        self.register_buffer("inv_freq", 10000.0 ** -(torch.arange(0, half, 2) / half), persistent=False)

    def forward(self, height: int, width: int, scale: float = 1.0, base_size: int | None = None) -> Tensor:
        """height, width: patches.  Returns: [1, height * width, C], the column's sinusoids first."""
        def axis(length: int) -> Tensor:
            steps = torch.arange(length, device=self.inv_freq.device) / scale
            if base_size is not None:
                steps = steps * (base_size / length)
            angles = steps[:, None] * self.inv_freq.float()[None]
            return torch.cat([angles.sin(), angles.cos()], dim=-1)  # [length, C/2]

        rows = axis(height)[:, None].expand(-1, width, -1)
        columns = axis(width)[None].expand(height, -1, -1)
        return torch.cat([columns, rows], dim=-1).flatten(0, 1)[None].to(self.inv_freq.dtype)
