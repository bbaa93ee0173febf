"""A start for a small autoencoder that trains in minutes: at first it is a downscaler, and learns the rest.

Group norm in front of the last layers hides absolute colour, and a random start spends most of a short
training finding it again.  Here six channels of every layer carry +R, -R, +G, -G, +B, -B from the first step
on; since silu(x) - silu(-x) = x, pairs pass the activation unharmed.  Residual branches start at zero.
"""
from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from opensora.models.vae.temporal import ResBlock, TemporalVAE

LOG_VARIANCE = -6.0  # at N(0, 1) noise, the default start, latents grow tenfold to be heard
PAIRS = 6            # +R -R +G -G +B -B
RANDOM_GAIN = 0.5    # of the other rows, which start as random features


@torch.no_grad()
def start_as_downscaler(vae: AutoencoderKL) -> None:
    """Latents 0, 1, 2 become R, G, B of 8 x 8 pixel means (up to group norm's scale), 3 a random feature."""
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            _zero(module.conv2)
            if module.conv_shortcut is not None:
                _carry(module.conv_shortcut, torch.eye(PAIRS))
        elif isinstance(module, Attention):
            _zero(module.to_out[0])
        elif isinstance(module, Downsample2D):
            _carry(module.conv, torch.eye(PAIRS), taps=(slice(0, 2), slice(0, 2)))
        elif isinstance(module, Upsample2D):
            _carry(module.conv, torch.eye(PAIRS))
    signs = torch.tensor([[1.0], [-1.0]])
    spread = torch.kron(torch.eye(3), signs)       # [6, 3]: colour -> pair
    joined = torch.kron(torch.eye(3), signs.T)     # [3, 6]: pair -> colour
    _carry(vae.encoder.conv_in, spread)
    _carry(vae.encoder.conv_out, joined)
    _carry(vae.quant_conv, torch.eye(3))
    _carry(vae.post_quant_conv, torch.eye(3))
    _carry(vae.decoder.conv_in, spread)
    _carry(vae.decoder.conv_out, joined)
    _quiet(vae.quant_conv)


@torch.no_grad()
def start_temporal(vae: TemporalVAE) -> None:
    """Latents become means over 4 frames, repeated when decoded; every channel travels as a pair +x, -x."""
    channels = vae.post_quant_conv.conv.in_channels
    signs = torch.tensor([[1.0], [-1.0]])
    same, pairs = torch.eye(channels), torch.eye(2 * channels)
    spread, joined = torch.kron(same, signs), torch.kron(same, signs.T) / 2
    for module in vae.modules():
        if isinstance(module, ResBlock):
            _zero(module.conv2.conv)
            if hasattr(module, "conv3"):
                _carry(module.conv3.conv, pairs)
    for module in vae.encoder.conv_blocks:
        if not isinstance(module, nn.Identity):
            _carry(module.conv, pairs, taps=(slice(1, 3), slice(1, 2), slice(1, 2)))  # the two newest frames
    for module in vae.decoder.conv_blocks:
        if not isinstance(module, nn.Identity):
            twice = torch.kron(pairs, torch.ones(2, 1))  # depth to time: both frames of a pair
            _carry(module.conv, twice, taps=(slice(2, 3), slice(1, 2), slice(1, 2)))
    _carry(vae.encoder.conv_in.conv, spread, taps=(slice(2, 3), slice(1, 2), slice(1, 2)))
    _carry(vae.encoder.conv2.conv, joined)
    _carry(vae.quant_conv.conv, same)
    _carry(vae.post_quant_conv.conv, same)
    _carry(vae.decoder.conv1.conv, spread, taps=(slice(2, 3), slice(1, 2), slice(1, 2)))
    _carry(vae.decoder.conv_out.conv, joined, taps=(slice(2, 3), slice(1, 2), slice(1, 2)))
    _quiet(vae.quant_conv.conv)


def _carry(conv: nn.Conv2d | nn.Conv3d, matrix: Tensor, taps: tuple[slice, ...] | None = None) -> None:
    """The first rows of `conv` copy the first columns by `matrix`, averaged over `taps` (None: centre)."""
    rows, columns = matrix.shape
    taps = taps or tuple(slice(k // 2, k // 2 + 1) for k in conv.kernel_size)
    conv.weight *= RANDOM_GAIN
    conv.weight[:rows] = 0.0
    area = conv.weight[0, 0][taps].numel()
    means = (matrix / area).reshape(rows, columns, *(1,) * len(taps))
    conv.weight[(slice(rows), slice(columns), *taps)] = means
    if conv.bias is not None:
        conv.bias[:rows] = 0.0


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def _quiet(conv: nn.Module) -> None:
    """Start the log-variance half of the moments at LOG_VARIANCE."""
    half = conv.weight.shape[0] // 2
    conv.weight[half:] = 0.0
    conv.bias[half:] = LOG_VARIANCE
