"""Attention: over the patches of a frame, over the frames of a patch, and from tokens to the caption.

Legend: B rows, H heads, N tokens, D head width, C = H*D, L caption tokens.
"""
from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from opensora.models.layers.token_split import TokenSplit

BACKENDS = {"sdpa": None, "flash-attn": "flash_attn", "xformers": "xformers"}
# On CPU, in half precision, many short sequences are faster as plain products: docs/performance.md
SHORT_SEQUENCE = 32


def check_backend(backend: str) -> None:
    """Raise ValueError for an unknown backend, ImportError naming the package for a missing one."""
    if backend not in BACKENDS:
        raise ValueError(f"attention_backend={backend!r}; allowed: {', '.join(BACKENDS)}")
    package = BACKENDS[backend]
    if package and importlib.util.find_spec(package) is None:
        raise ImportError(f"attention_backend={backend!r} needs the package {package!r}, which is not "
                          "installed; install it, or choose 'sdpa' (enable_flash_attn=False, "
                          "--flash-attn False)")


def check_backend_fits(backend: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raise ValueError where a backend has no kernel for the device or dtype."""
    if backend != "sdpa" and device.type != "cuda":
        raise ValueError(f"attention_backend={backend!r} on device={device.type!r}; allowed there: sdpa")
    if backend == "flash-attn" and dtype == torch.float32:
        raise ValueError("attention_backend='flash-attn' with dtype='fp32'; allowed: bf16, fp16, or sdpa")


def attend(q: Tensor, k: Tensor, v: Tensor, backend: str = "sdpa") -> Tensor:
    """softmax(q k^T / sqrt(D)) v.  q: [B, H, N, D]; k, v: [B, H, L, D].  Returns: [B, H, N, D]."""
    if backend == "flash-attn":
        from flash_attn import flash_attn_func

        return flash_attn_func(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)
    if backend == "xformers":
        from xformers.ops import memory_efficient_attention

        out = memory_efficient_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return out.transpose(1, 2)
    if q.device.type == "cpu" and q.dtype != torch.float32 and k.shape[2] <= SHORT_SEQUENCE:
        return plain_attention(q, k, v)
    return F.scaled_dot_product_attention(q, k, v)


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`attend` as two products, with the weights [B, H, N, L] in memory; softmax in fp32."""
    weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return weights.softmax(dim=-1, dtype=torch.float32).to(v.dtype) @ v


class HeadRMSNorm(nn.Module):
    """RMS norm of each head's vector, in fp32; the learned weight multiplies after the cast, as in Llama."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # not F.rms_norm: it copies q and k first, and on CUDA is no faster for vectors as short as a head's
        exact = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=exact)
        scale = torch.rsqrt(norm.square() / x.shape[-1] + self.eps)
        return self.weight * (x * scale).to(x.dtype)


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary position embedding of interleaved pairs (0,1), (2,3), ..., in fp32.

    x: [B, H, N, D].  cos, sin: of each pair, [N, D/2].
    """
    exact = torch.promote_types(x.dtype, torch.float32)
    pairs, (cos, sin) = x.to(exact).unflatten(-1, (-1, 2)), (table.to(exact) for table in rope)
    if torch.compiler.is_compiling():  # fuses real numbers, not complex ones
        even, odd = pairs.unbind(-1)
        turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
    else:  # half the passes over memory
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cos, sin))
    return turned.flatten(-2).to(x.dtype)


class Attention(nn.Module):
    """Self-attention of sequences [B, N, C]; qk_norm, then RoPE where tables are given."""

    def __init__(self, dim: int, num_heads: int, qk_norm: bool, backend: str) -> None:
        super().__init__()
        self.num_heads, self.backend = num_heads, backend
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = HeadRMSNorm(dim // num_heads) if qk_norm else nn.Identity()
        self.k_norm = HeadRMSNorm(dim // num_heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor] | None = None,
                split: TokenSplit | None = None) -> Tensor:
        """split: the sequence's other tokens are on other ranks, which each attend with some of the heads."""
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.num_heads)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        q, k = q.to(v.dtype), k.to(v.dtype)  # under autocast the norm's fp32 weight has widened them
        product = partial(attend, backend=self.backend)
        out = product(q, k, v) if split is None else split.in_heads(product, q, k, v)
        return self.proj(rearrange(out, "b h n d -> b n (h d)"))


@dataclass(frozen=True)
class SameLength:
    """Rows of the batch whose captions have one length: their numbers, and the same on the device."""

    numbers: tuple[int, ...]
    index: Tensor

    @classmethod
    def on(cls, device: torch.device, numbers: Sequence[int]) -> SameLength:
        return cls(tuple(numbers), index_on(device, numbers))


def index_on(device: torch.device, numbers: Sequence[int]) -> Tensor:
    """To CUDA from pinned memory, for a plain copy would wait for the device."""
    index = torch.tensor(numbers, dtype=torch.long)
    return index.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else index.to(device)


@dataclass(frozen=True)
class PackedCaptions:
    """Captions of different lengths without their padding.

    tokens: [sum(lengths), C].  lengths: caption tokens of each row.
    """

    tokens: Tensor
    lengths: tuple[int, ...]

    @cached_property
    def groups(self) -> list[SameLength]:
        """Usually one."""
        rows: dict[int, list[int]] = {}
        for row, length in enumerate(self.lengths):
            rows.setdefault(length, []).append(row)
        return [SameLength.on(self.tokens.device, numbers) for numbers in rows.values()]


# keys and values of the rows of each length: (rows, k [b, H, L, D], v [b, H, L, D])
CaptionKV = list[tuple[SameLength, Tensor, Tensor]]
BlockCaptions = CaptionKV | PackedCaptions  # what a block is given: made for it, or to be made there


def captions_of(captions: list[CaptionKV], rows: Sequence[int], index: Tensor) -> list[CaptionKV]:
    """Of every block's captions those of some rows of the batch, which become rows 0, 1, ... of their own.

    index: `rows` on the device.
    """
    groups, device = [], index.device  # which rows have captions of one length is the same for all blocks
    for position, (group, _, _) in enumerate(captions[0]):
        new = [i for i, row in enumerate(rows) if row in group.numbers]
        if new:
            old = index if len(captions[0]) == 1 else index_on(
                device, [group.numbers.index(rows[i]) for i in new])
            groups.append((position, SameLength.on(device, new), old))
    return [[(new, kv[position][1][old], kv[position][2][old]) for position, new, old in groups]
            for kv in captions]


class CrossAttention(nn.Module):
    """Attention from tokens [B, N, C] to each row's own caption.

    Keys and values depend on the caption alone: `keys_values` makes them once for all denoising steps.  Where
    there is one step, as in training, it may as well be called with the caption.
    """

    def __init__(self, dim: int, num_heads: int, backend: str) -> None:
        super().__init__()
        self.num_heads, self.backend = num_heads, backend
        self.q_linear = nn.Linear(dim, dim)
        self.kv_linear = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def keys_values(self, captions: PackedCaptions) -> CaptionKV:
        rows = self.kv_linear(captions.tokens).split(captions.lengths)
        groups = []
        for group in captions.groups:
            kv = torch.stack([rows[i] for i in group.numbers])
            k, v = rearrange(kv, "b l (two h d) -> two b h l d", two=2, h=self.num_heads)
            groups.append((group, k, v))
        return groups

    def forward(self, x: Tensor, captions: BlockCaptions) -> Tensor:
        if isinstance(captions, PackedCaptions):
            captions = self.keys_values(captions)
        q = rearrange(self.q_linear(x), "b n (h d) -> b h n d", h=self.num_heads)
        if len(captions) == 1:
            _, k, v = captions[0]
            out = attend(q, k, v, self.backend)
        else:  # one product per length: neither padding nor a mask, which would rule out the fast kernels
            out = torch.empty_like(q)
            for group, k, v in captions:
                out[group.index] = attend(q[group.index], k, v, self.backend)
        return self.proj(rearrange(out, "b h n d -> b n (h d)"))
