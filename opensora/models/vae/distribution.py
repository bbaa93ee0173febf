"""Diagonal Gaussian over latents, as both autoencoders predict it."""
from __future__ import annotations

import torch
from torch import Tensor


class DiagonalGaussian:
    """N(mean, exp(logvar)) from moments [B, 2C, ...] (mean first, log-variance clipped to [-30, 20])."""

    def __init__(self, moments: Tensor) -> None:
        self.mean, logvar = moments.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)

    def sample(self) -> Tensor:
        # drawn in fp32 on the CPU, then cast: the published draw, the same on every device
        noise = torch.randn(self.mean.shape).to(self.mean)
        return self.mean + (0.5 * self.logvar).exp() * noise

    def kl(self) -> Tensor:
        """KL divergence to N(0, 1), summed over latents.  Returns: [B]."""
        terms = self.mean.square() + self.logvar.exp() - 1.0 - self.logvar
        return 0.5 * terms.flatten(1).sum(1)
