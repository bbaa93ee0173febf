"""Two small models that speak the slot protocol, and a sampler."""
import torch
from torch import Tensor, nn


class ToyBlock(nn.Module):
    """Two residuals, each of its own linear layer, that drift with the timestep."""

    residual_names = ("attn", "cross_mlp")

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn, self.mlp = nn.Linear(width, width), nn.Linear(width, width)
        self.residual_cache = None

    def forward(self, x: Tensor, t: Tensor, S: int) -> Tensor:
        cache = self.residual_cache
        if cache is not None and cache.reuse:
            return cache.add_to(x)
        gate = (0.1 + 0.01 * t)[:, None, None].to(x.dtype)
        attn = gate * self.attn(x).tanh()
        x = x + attn
        cross_mlp = gate * self.mlp(x).tanh()
        if cache is not None:
            cache.save(S, attn=attn, cross_mlp=cross_mlp)
        return x + cross_mlp


class ToyDiT(nn.Module):
    """x: [B, (T S), C] -> the same shape; t: [B].  With `own_slot` also a slot of the whole stack."""

    def __init__(self, width: int = 8, depth: int = 3, S: int = 2, own_slot: bool = True) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ToyBlock(width) for _ in range(depth))
        self.S, self.runs_of_blocks, self.rows_run = S, 0, 0
        if own_slot:
            self.residual_cache = None

    def forward(self, x: Tensor, t: Tensor, x_mask: Tensor | None = None) -> Tensor:
        def blocks(x: Tensor, rows=None) -> Tensor:
            self.runs_of_blocks += 1
            self.rows_run += len(x)
            for block in self.blocks:
                x = block(x, t if rows is None else t[rows.index], self.S)
            return x

        cache = getattr(self, "residual_cache", None)
        return blocks(x) if cache is None else cache.run(x, self.S, blocks)


class ScriptedBlock(nn.Module):
    """Its residual at step t is the t-th given, whatever x is: decisions can be worked out by hand."""

    def __init__(self, residuals: list[Tensor]) -> None:
        super().__init__()
        self.residuals = residuals
        self.residual_cache = None

    def forward(self, x: Tensor, step: int, S: int) -> Tensor:
        if self.residual_cache.reuse:
            return self.residual_cache.add_to(x)
        attn = self.residuals[step].clone()
        self.residual_cache.save(S, attn=attn)
        return x + attn


class ScriptedDiT(nn.Module):
    """Blocks `blocks.0`, `blocks.1`, ..., one for each list of residuals [B, (T S), C]."""

    def __init__(self, *residuals: list[Tensor], S: int = 1) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ScriptedBlock(r) for r in residuals)
        self.S = S

    def forward(self, x: Tensor, step: int) -> Tensor:
        for block in self.blocks:
            x = block(x, step, self.S)
        return x


def toy(seed: int = 0, **options: int) -> ToyDiT:
    torch.manual_seed(seed)
    return ToyDiT(**options)


def noise(rows: int = 2, tokens: int = 6, width: int = 8, seed: int = 1) -> Tensor:
    return torch.randn(rows, tokens, width, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def sample(model: nn.Module, num_steps: int, x: Tensor | None = None, masks: list | None = None) -> Tensor:
    """`num_steps` calls, one after the other.  masks: x_mask of every step."""
    x = noise() if x is None else x
    for step in range(num_steps):
        t = torch.full((len(x),), float(num_steps - step), device=x.device)
        x = x - 0.1 * (model(x, t) if masks is None else model(x, t, masks[step]))
    return x


@torch.no_grad()
def play(model: ScriptedDiT, num_steps: int) -> None:
    for step in range(num_steps):
        model(model.blocks[0].residuals[0], step)
