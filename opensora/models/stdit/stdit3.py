"""STDiT3, the transformer of Open-Sora v1.2.

Spatial and temporal blocks in turn, adaLN-single, caption cross-attention.

Legend: B rows (with guidance: conditional, then unconditional ones), T frames, S patches per frame, N = T*S,
C width, F modulated frames (1, or T under a frame mask), L caption tokens.
"""
from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from einops import rearrange
from rotary_embedding_torch import RotaryEmbedding
from timm.layers import DropPath, Mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from opensora.models.layers.attention import (
    Attention,
    BlockCaptions,
    CrossAttention,
    PackedCaptions,
    captions_of,
    check_backend,
)
from opensora.models.layers.embedders import (
    CaptionEmbedder,
    PatchEmbed3D,
    PositionEmbedding2D,
    SizeEmbedder,
    TimestepEmbedder,
)
from opensora.models.layers.token_split import TokenSplit
from opensora.registry import MODELS
from opensora.utils.weights import load_weights, read_config


@dataclass(kw_only=True)
class STDiT3Config:
    """Size and options, named as published.

    attention_backend: "sdpa", "flash-attn" or "xformers"; `enable_flash_attn` is the published way to choose
    the second, or with False to turn it off.  enable_layernorm_kernel is accepted and changes nothing:
    torch's layer norm is one kernel.
    grad_checkpoint: in training, compute each block again on the way back instead of keeping what it held.
    """

    input_size: tuple = (None, None, None)
    input_sq_size: int = 512
    in_channels: int = 4
    patch_size: tuple[int, int, int] = (1, 2, 2)
    hidden_size: int = 1152
    depth: int = 28
    num_heads: int = 16
    mlp_ratio: float = 4.0
    class_dropout_prob: float = 0.1
    pred_sigma: bool = True
    drop_path: float = 0.0
    caption_channels: int = 4096
    model_max_length: int = 300
    qk_norm: bool = True
    attention_backend: str = "sdpa"
    enable_flash_attn: bool | None = None
    enable_layernorm_kernel: bool = False
    grad_checkpoint: bool = False
    only_train_temporal: bool = False
    freeze_y_embedder: bool = False
    skip_y_embedder: bool = False

    def __post_init__(self) -> None:
        self.patch_size = tuple(self.patch_size)
        if self.hidden_size % self.num_heads or (self.hidden_size // self.num_heads) % 2:
            raise ValueError(f"hidden_size={self.hidden_size}; allowed: num_heads={self.num_heads} "
                             "times an even number")
        if self.enable_flash_attn:
            self.attention_backend = "flash-attn"
        elif self.enable_flash_attn is False and self.attention_backend == "flash-attn":
            self.attention_backend = "sdpa"
        check_backend(self.attention_backend)

    @classmethod
    def from_dict(cls, values: dict) -> STDiT3Config:
        """Raises ValueError for a key that is no field."""
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=3) or known
                raise ValueError(f"model: unknown key {key!r}; allowed: {', '.join(near)}")
        return cls(**values)


@dataclass(frozen=True)
class Conditions:
    """All that stays the same over the denoising steps of a run: made once by `STDiT3.prepare`.

    split: how ranks share the tokens, S being the own patches from then on; None: all are here.
    """

    positions: Tensor                   # [1, S, C]
    fps_vectors: Tensor                 # [B, C]
    rope: tuple[Tensor, Tensor]         # cos, sin: [T, D/2]
    captions: list[tuple[BlockCaptions, BlockCaptions]]  # per depth: of the spatial and the temporal block
    split: TokenSplit | None = None

    def of(self, rows: Sequence[int], index: Tensor) -> Conditions:
        """Those of some rows of the batch, in that order.  index: `rows` on the device."""
        chosen = captions_of([kv for pair in self.captions for kv in pair], rows, index)
        return replace(self, fps_vectors=self.fps_vectors[index],
                       captions=list(zip(chosen[::2], chosen[1::2], strict=True)))


class STDiT3Block(nn.Module):
    """Attention over space or time, cross-attention, MLP.  Adds two residuals: `attn` and `cross_mlp`."""

    residual_names = ("attn", "cross_mlp")
    part_names = ("cross", "mlp")

    def __init__(self, config: STDiT3Config, temporal: bool, drop_path: float) -> None:
        super().__init__()
        width = config.hidden_size
        self.temporal = temporal
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attn = Attention(width, config.num_heads, config.qk_norm, config.attention_backend)
        self.cross_attn = CrossAttention(width, config.num_heads, config.attention_backend)
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.mlp = Mlp(width, int(width * config.mlp_ratio), act_layer=lambda: nn.GELU(approximate="tanh"))
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.scale_shift_table = nn.Parameter(torch.randn(6, width) / width**0.5)
        self.residual_cache = None  # slot: filled from outside for the length of a sampling run

    def forward(self, x: Tensor, t: Tensor, captions: BlockCaptions, rope: tuple[Tensor, Tensor],
                T: int, S: int, split: TokenSplit | None = None) -> Tensor:
        """x: [B, (T S), C].  t: [B, F, 6, C].  split: as of `Conditions`."""
        cache = self.residual_cache
        if cache is not None and cache.reuse:
            return cache.add_to(x)
        x, attn, cross, mlp = self.compute(x, t, captions, rope, T, S, split)
        if cache is not None:
            cache.save(S, attn=attn, cross_mlp=cross + mlp, parts={"cross": cross, "mlp": mlp})
        return x

    def compute(
        self, x: Tensor, t: Tensor, captions: BlockCaptions, rope: tuple[Tensor, Tensor], T: int, S: int,
        split: TokenSplit | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns (x, attn, cross, mlp): the output, and the residuals that it adds; each [B, (T S), C]."""
        # each [B, F, 1, C]
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = \
            (self.scale_shift_table + t).unsqueeze(3).unbind(dim=2)
        h = modulate(self.norm1(x), shift_attn, scale_attn, T)
        if self.temporal:
            h = self.attn(rearrange(h, "b (t s) c -> (b s) t c", t=T), rope)
            h = rearrange(h, "(b s) t c -> b t s c", s=S)
        else:
            h = self.attend_in_frames(rearrange(h, "b (t s) c -> b t s c", t=T), split)
        attn = self.drop_path((gate_attn * h).flatten(1, 2))
        x = x + attn
        cross = self.cross_attn(x, captions)
        x = x + cross
        h = self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp, T))
        mlp = self.drop_path((gate_mlp * rearrange(h, "b (t s) c -> b t s c", t=T)).flatten(1, 2))
        return x + mlp, attn, cross, mlp

    def attend_in_frames(self, h: Tensor, split: TokenSplit | None) -> Tensor:
        """Spatial attention.  h: [B, T, S, C]; other ranks' patches take part."""
        if split is None:
            return self.attn(h.flatten(0, 1)).view(h.shape)
        if split.by_heads:
            return self.attn(h.flatten(0, 1), split=split).view(h.shape)
        return split.in_frames(self.attn, h)


def modulate(x: Tensor, shift: Tensor, scale: Tensor, T: int) -> Tensor:
    """x * (1 + scale) + shift, frame by frame.  x: [B, (T S), C]; shift, scale: [B, F, 1, C]."""
    return torch.addcmul(shift, rearrange(x, "b (t s) c -> b t s c", t=T), 1 + scale).flatten(1, 2)


class FinalLayer(nn.Module):
    """Tokens -> values of their patches: [B, N, C] -> [B, N, (patch C_out)]."""

    def __init__(self, width: int, out_features: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(width, out_features)
        self.scale_shift_table = nn.Parameter(torch.randn(2, width) / width**0.5)

    def forward(self, x: Tensor, t: Tensor, t0: Tensor | None, x_mask: Tensor | None, T: int) -> Tensor:
        """x: [B, (T S), C].  t, t0: [B, 1, C], of the step, of timestep 0.  x_mask: [B, T] or None, as t0."""
        x = self._modulated(x, t, T)
        if x_mask is not None:
            # as published, and so as trained: clean frames are normalised and modulated a second time
            clean = self._modulated(x, t0, T)
            x = torch.where(x_mask.repeat_interleave(x.shape[1] // T, dim=1)[..., None], x, clean)
        return self.linear(x)

    def _modulated(self, x: Tensor, t: Tensor, T: int) -> Tensor:
        shift, scale = (self.scale_shift_table + t.unsqueeze(2)).unsqueeze(3).unbind(dim=2)
        return modulate(self.norm_final(x), shift, scale, T)


class STDiT3(nn.Module):
    """The denoiser: latents, timestep, caption -> velocity (with pred_sigma, and as many unused ones)."""

    def __init__(self, config: STDiT3Config) -> None:
        super().__init__()
        self.config = config
        self.in_channels = config.in_channels
        self.out_channels = config.in_channels * (2 if config.pred_sigma else 1)
        width = config.hidden_size
        self.pos_embed = PositionEmbedding2D(width)
        self.rope = RotaryEmbedding(width // config.num_heads)
        self.x_embedder = PatchEmbed3D(config.patch_size, config.in_channels, width)
        self.t_embedder = TimestepEmbedder(width)
        self.fps_embedder = SizeEmbedder(width)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.y_embedder = CaptionEmbedder(config.caption_channels, width, config.class_dropout_prob,
                                          config.model_max_length)
        rates = torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist()
        self.spatial_blocks = nn.ModuleList(STDiT3Block(config, False, rate) for rate in rates)
        self.temporal_blocks = nn.ModuleList(STDiT3Block(config, True, rate) for rate in rates)
        pt, ph, pw = config.patch_size
        self.final_layer = FinalLayer(width, pt * ph * pw * self.out_channels)
        self.residual_cache = None  # slot of the whole stack of blocks
        self.token_ranks = None  # slot: TokenRanks where several share a video's tokens, filled from outside
        self._initialise()

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        y: Tensor | Conditions,
        mask: Tensor | None = None,
        x_mask: Tensor | None = None,
        fps: Tensor | None = None,
        height: Tensor | None = None,
        width: Tensor | None = None,
    ) -> Tensor:
        """x: latents [B, C_in, T, H, W].  timestep: [B], 0 to 1000.  y: [B, 1, L, C_text], or from `prepare`.

        mask: caption mask [b, L] (b divides B; None attends everything).  x_mask: [B, T], True where a frame
        is noisy at `timestep`, False where it is at timestep 0.  fps, height, width: [b], frames per second
        and pixels.  Returns: [B, C_out, T, H, W], fp32.
        """
        if not isinstance(y, Conditions):
            y = self.prepare(y, mask, x.shape[2:], height, width, fps)
        dtype = self.x_embedder.proj.weight.dtype
        T, H, W = self.patch_grid(x.shape[2:])
        t, t0 = self.embed_timestep(timestep.to(dtype), y.fps_vectors, x_mask)      # [B, 1, C]
        t_frames = t if x_mask is None else torch.where(x_mask[:, :, None], t, t0)  # [B, F, C]
        tokens = rearrange(self.x_embedder(x.to(dtype)), "b (t s) c -> b t s c", t=T)
        if y.split is not None:
            tokens = y.split.own(tokens)
        tokens = (tokens + y.positions[:, None]).flatten(1, 2)                      # [B, (T S), C]
        tokens = self.run_blocks(tokens, t_frames, y, T, y.positions.shape[1])
        tokens = self.final_layer(tokens, t, t0, x_mask, T)
        if y.split is not None:
            tokens = y.split.whole(tokens, T)
        return self.unpatchify(tokens, (T, H, W), x.shape[2:]).float()

    def prepare(self, y: Tensor, mask: Tensor | None, latent_size: tuple[int, int, int], height: Tensor,
                width: Tensor, fps: Tensor) -> Conditions:
        """Everything that no denoising step changes.  latent_size: (T, H, W).  Others: as for `forward`.

        Pass the result as `y`, so that captions are embedded once for a whole run.
        """
        T, H, W = self.patch_grid(latent_size)
        pixels = height[0].item() * width[0].item()  # device sync, once for a run
        positions = self.pos_embed(H, W, pixels**0.5 / self.config.input_sq_size, round((H * W) ** 0.5))
        split = None
        if self.token_ranks is not None:
            if self.training:
                raise ValueError("token_ranks in training; allowed: in sampling, for no gradients go back "
                                 "through what ranks exchange")
            split = TokenSplit.of(T, H * W, self.config.num_heads, self.token_ranks)
            positions = split.own(positions)
        frames = torch.arange(T, device=positions.device, dtype=self.rope.freqs.dtype)
        angles = self.rope(frames)[:, ::2]  # [T, D/2]: of each pair once
        captions = self.pack_captions(y, mask)
        fps_vectors = self.fps_embedder(fps, len(captions.lengths))
        if self.training and torch.is_grad_enabled():  # for one step, by blocks: their weights may be sharded
            pairs = [(captions, captions)] * self.config.depth
        else:
            pairs = [(s.cross_attn.keys_values(captions), t.cross_attn.keys_values(captions))
                     for s, t in zip(self.spatial_blocks, self.temporal_blocks, strict=True)]
        return Conditions(positions, fps_vectors, (angles.cos(), angles.sin()), pairs, split)

    def pack_captions(self, y: Tensor, mask: Tensor | None) -> PackedCaptions:
        """Embed captions and leave their padding out.  y: [B, 1, L, C_text]; mask: [b, L] of 0 and 1.

        With skip_y_embedder, y is [1, sum(lengths), C] already and `mask` holds the lengths.
        """
        y = y.to(self.x_embedder.proj.weight.dtype)
        if self.config.skip_y_embedder:
            return PackedCaptions(y[0], tuple(int(n) for n in mask))
        if self.training and self.y_embedder.uncond_prob > 0:
            y = self.y_embedder.drop(y)
        tokens = y.squeeze(1)  # [B, L, C_text]
        rows, length, _ = tokens.shape
        if mask is None:
            return PackedCaptions(self.y_embedder(tokens.flatten(0, 1)), (length,) * rows)
        mask = mask.reshape(len(mask), -1).bool().repeat(rows // len(mask), 1)
        lengths = tuple(mask.sum(dim=1).tolist())  # device sync, once for a run
        return PackedCaptions(self.y_embedder(tokens[mask]), lengths)

    def embed_timestep(self, timestep: Tensor, fps_vectors: Tensor,
                       x_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Returns (t, t0), each [B, 1, C]: of the step and, under a frame mask, of timestep 0 (clean)."""
        t = (self.t_embedder(timestep) + fps_vectors)[:, None]
        if x_mask is None:
            return t, None
        return t, (self.t_embedder(torch.zeros_like(timestep)) + fps_vectors)[:, None]

    def run_blocks(self, x: Tensor, t: Tensor, conditions: Conditions, T: int, S: int) -> Tensor:
        """x: [B, (T S), C] through all blocks, spatial and temporal in turn.  t: [B, F, C]."""
        def blocks(x: Tensor, rows: Any = None) -> Tensor:
            if rows is None:
                return self.compute_blocks(x, t, conditions, T, S)
            return self.compute_blocks(x, t[rows.index], conditions.of(rows.numbers, rows.index), T, S)

        cache = self.residual_cache
        return blocks(x) if cache is None else cache.run(x, S, blocks)

    def compute_blocks(self, x: Tensor, t: Tensor, conditions: Conditions, T: int, S: int) -> Tensor:
        t = self.t_block(t).unflatten(-1, (6, -1))  # [B, F, 6, C]
        recompute = self.training and self.config.grad_checkpoint
        for spatial, temporal, (caption_s, caption_t) in zip(
            self.spatial_blocks, self.temporal_blocks, conditions.captions, strict=True
        ):
            for block, caption in ((spatial, caption_s), (temporal, caption_t)):
                if recompute:
                    x = checkpoint(block, x, t, caption, conditions.rope, T, S, conditions.split,
                                   use_reentrant=False)
                else:
                    x = block(x, t, caption, conditions.rope, T, S, conditions.split)
        return x

    def compile_blocks(self) -> None:
        """By torch.compile, each kind of block at its first call with a shape, not again for its siblings."""
        # parts of a batch with captions of several lengths are many shapes; beyond the limit none is compiled
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
        for block in (*self.spatial_blocks, *self.temporal_blocks):
            block.compute = torch.compile(block.compute)

    def patch_grid(self, latent_size: tuple[int, int, int]) -> tuple[int, int, int]:
        return tuple(-(-n // p) for n, p in zip(latent_size, self.config.patch_size, strict=True))

    def unpatchify(self, x: Tensor, grid: tuple[int, int, int], latent_size: tuple[int, int, int]) -> Tensor:
        (t, h, w), (pt, ph, pw) = grid, self.config.patch_size
        x = rearrange(x, "b (t h w) (p q r c) -> b c (t p) (h q) (w r)", t=t, h=h, w=w, p=pt, q=ph, r=pw)
        frames, height, width = latent_size
        return x[:, :, :frames, :height, :width]

    def _initialise(self) -> None:
        def xavier(module: nn.Module) -> None:
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

        self.apply(xavier)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        for layer in (self.t_embedder.mlp[0], self.t_embedder.mlp[2], self.fps_embedder.mlp[0],
                      self.t_block[1]):
            nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(self.fps_embedder.mlp[2].weight)
        # temporal blocks start as the identity, so that images train the spatial ones undisturbed
        for block in self.temporal_blocks:
            for layer in (block.attn.proj, block.cross_attn.proj, block.mlp.fc2):
                nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.final_layer.linear.weight)
        if self.config.only_train_temporal:
            self.requires_grad_(False)
            self.temporal_blocks.requires_grad_(True)
        if self.config.freeze_y_embedder:
            self.y_embedder.requires_grad_(False)


def _build(sizes: dict, from_pretrained: str | None, force_huggingface: bool, options: dict) -> STDiT3:
    """A model of `sizes`, overridden by the checkpoint's config.json, then by the config file's `options`."""
    stored = read_config(from_pretrained) if from_pretrained else {}
    names = {f.name for f in fields(STDiT3Config)} - {"attention_backend", "enable_flash_attn"}
    stored_sizes = {k: v for k, v in stored.items() if k in names}
    model = STDiT3(STDiT3Config.from_dict({**sizes, **stored_sizes, **options}))
    if from_pretrained:
        # checkpoints of v1.1 and before stored the position embedding
        load_weights(model, from_pretrained, optional=("pos_embed_temporal", "pos_embed", "rope.freqs"))
    return model


@MODELS.register_module("STDiT3-XL/2")
def stdit3_xl_2(from_pretrained: str | None = None, force_huggingface: bool = False, **options) -> STDiT3:
    """Depth 28, width 1152, 16 heads: the released model."""
    return _build({"depth": 28, "hidden_size": 1152, "patch_size": (1, 2, 2), "num_heads": 16},
                  from_pretrained, force_huggingface, options)


@MODELS.register_module("STDiT3-3B/2")
def stdit3_3b_2(from_pretrained: str | None = None, force_huggingface: bool = False, **options) -> STDiT3:
    """Depth 28, width 1872, 26 heads."""
    return _build({"depth": 28, "hidden_size": 1872, "patch_size": (1, 2, 2), "num_heads": 26},
                  from_pretrained, force_huggingface, options)


@MODELS.register_module("STDiT3")
def stdit3(from_pretrained: str | None = None, **options) -> STDiT3:
    """Any size: from the config file, or from the checkpoint's config.json."""
    return _build({}, from_pretrained, False, options)


def config_of(model: STDiT3) -> dict:
    """What config.json holds: fields that describe the weights, not the machine."""
    chosen = asdict(model.config)
    for key in ("attention_backend", "enable_flash_attn", "enable_layernorm_kernel", "grad_checkpoint"):
        del chosen[key]
    return {"model_type": "STDiT3", **chosen, "patch_size": list(model.config.patch_size)}
