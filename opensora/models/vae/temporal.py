"""The causal temporal autoencoder: 2D latents of 17 frames -> 5 (MAGVIT-v2 layout, as in Open-Sora v1.2).

Legend: B videos, C channels, T frames, H x W latent pixels.
"""
from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from opensora.models.vae.distribution import DiagonalGaussian


class CausalConv3d(nn.Module):
    """3D convolution that sees no later frame: time is padded in front only.

    A stride s in time pads s - 1 frames less, so that 2n frames become n.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int, int],
        strides: tuple[int, int, int] = (1, 1, 1),
        bias: bool = True,
    ) -> None:
        super().__init__()
        t, h, w = (kernel_size,) * 3 if isinstance(kernel_size, int) else kernel_size
        self.padding = (w // 2, w // 2, h // 2, h // 2, t - strides[0], 0)
        self.conv = nn.Conv3d(in_channels, out_channels, (t, h, w), stride=strides, bias=bias)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, T, H, W]
        # padding apart from the convolution: built-in padding is 7 times slower in fp32 on CPU
        return self.conv(F.pad(x, self.padding)) if any(self.padding) else self.conv(x)


class ResBlock(nn.Module):
    """Two causal convolutions with group norm; `conv3` matches channels where they change."""

    def __init__(self, in_channels: int, out_channels: int, num_groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(num_groups, in_channels)
        self.conv1 = CausalConv3d(in_channels, out_channels, 3, bias=False)
        self.norm2 = nn.GroupNorm(num_groups, out_channels)
        self.conv2 = CausalConv3d(out_channels, out_channels, 3, bias=False)
        if in_channels != out_channels:
            self.conv3 = CausalConv3d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.conv3(x) if hasattr(self, "conv3") else x)


class Encoder(nn.Module):
    def __init__(self, channels: list[int], out_channels: int, in_channels: int, num_res_blocks: int,
                 temporal_downsample: tuple[bool, ...], num_groups: int) -> None:
        super().__init__()
        self.conv_in = CausalConv3d(in_channels, channels[0], 3, bias=False)
        self.block_res_blocks, self.conv_blocks = nn.ModuleList(), nn.ModuleList()
        previous = channels[0]
        for level, width in enumerate(channels):
            self.block_res_blocks.append(_res_blocks(previous, width, num_res_blocks, num_groups))
            previous = width
            if level < len(channels) - 1:
                down = temporal_downsample[level]
                self.conv_blocks.append(
                    CausalConv3d(width, width, 3, strides=(2, 1, 1)) if down else nn.Identity())
        self.res_blocks = _res_blocks(previous, previous, num_res_blocks, num_groups)
        self.norm1 = nn.GroupNorm(num_groups, previous)
        self.conv2 = CausalConv3d(previous, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level, blocks in enumerate(self.block_res_blocks):
            for block in blocks:
                x = block(x)
            if level < len(self.conv_blocks):
                x = self.conv_blocks[level](x)
        for block in self.res_blocks:
            x = block(x)
        return self.conv2(F.silu(self.norm1(x)))


class Decoder(nn.Module):
    def __init__(self, channels: list[int], in_channels: int, out_channels: int, num_res_blocks: int,
                 temporal_downsample: tuple[bool, ...], num_groups: int) -> None:
        super().__init__()
        previous = channels[-1]
        self.conv1 = CausalConv3d(in_channels, previous, 3)
        self.res_blocks = _res_blocks(previous, previous, num_res_blocks, num_groups)
        blocks, ups = [], []
        for level in reversed(range(len(channels))):
            width = channels[level]
            blocks.insert(0, _res_blocks(previous, width, num_res_blocks, num_groups))
            previous = width
            if level > 0:
                up = temporal_downsample[level - 1]
                ups.insert(0, CausalConv3d(width, 2 * width, 3) if up else nn.Identity())
        self.block_res_blocks, self.conv_blocks = nn.ModuleList(blocks), nn.ModuleList(ups)
        self.norm1 = nn.GroupNorm(num_groups, previous)
        self.conv_out = CausalConv3d(previous, out_channels, 3)

    def forward(self, z: Tensor) -> Tensor:
        x = self.conv1(z)
        for block in self.res_blocks:
            x = block(x)
        for level in reversed(range(len(self.block_res_blocks))):
            for block in self.block_res_blocks[level]:
                x = block(x)
            if level > 0 and not isinstance(self.conv_blocks[level - 1], nn.Identity):
                x = rearrange(self.conv_blocks[level - 1](x), "b (c s) t h w -> b c (t s) h w", s=2)
        return self.conv_out(F.silu(self.norm1(x)))


def _res_blocks(in_channels: int, out_channels: int, count: int, num_groups: int) -> nn.ModuleList:
    return nn.ModuleList(ResBlock(in_channels if i == 0 else out_channels, out_channels, num_groups)
                         for i in range(count))


class TemporalVAE(nn.Module):
    """Autoencoder over time.  Published size: 4 latent channels, filters 128, 4 blocks a level, groups 32.

    T frames are padded with zeros *in front* to a multiple of the compression, and cut there after decoding.
    """

    def __init__(
        self,
        in_out_channels: int = 4,
        latent_embed_dim: int = 4,
        embed_dim: int = 4,
        filters: int = 128,
        num_res_blocks: int = 4,
        channel_multipliers: tuple[int, ...] = (1, 2, 2, 4),
        temporal_downsample: tuple[bool, ...] = (False, True, True),
        num_groups: int = 32,
    ) -> None:
        super().__init__()
        channels = [filters * m for m in channel_multipliers]
        self.time_downsample_factor = 2 ** sum(temporal_downsample)
        shape = (num_res_blocks, tuple(temporal_downsample), num_groups)
        self.encoder = Encoder(channels, 2 * latent_embed_dim, in_out_channels, *shape)
        self.quant_conv = CausalConv3d(2 * latent_embed_dim, 2 * embed_dim, 1)
        self.post_quant_conv = CausalConv3d(embed_dim, latent_embed_dim, 1)
        self.decoder = Decoder(channels, latent_embed_dim, in_out_channels, *shape)

    def padding(self, num_frames: int) -> int:
        return -num_frames % self.time_downsample_factor

    def latent_frames(self, num_frames: int) -> int:
        return (num_frames + self.padding(num_frames)) // self.time_downsample_factor

    def encode(self, x: Tensor) -> DiagonalGaussian:  # [B, C, T, H, W]
        x = F.pad(x, (0, 0, 0, 0, self.padding(x.shape[2]), 0))
        return DiagonalGaussian(self.quant_conv(self.encoder(x)))

    def decode(self, z: Tensor, num_frames: int) -> Tensor:  # [B, C, t, H, W] -> [B, C, num_frames, H, W]
        return self.decoder(self.post_quant_conv(z))[:, :, self.padding(num_frames):]
