"""Extrapolating the stack's residual: exact where it drifts steadily, plain reuse where it does not."""
import math

import pytest
import torch
from torch import Tensor, nn
from toy_dit import noise, sample, toy

from adacache import AdaCacheConfig, FixedSchedule, adaptive_cache, inner_products
from adacache.fit import LARGEST, explained, fitted, trusted
from adacache.inner_products import GUIDANCE
from adacache.schedule import longest_rate

STEPS = 24
SOME = FixedSchedule((0, 1, 2, 4, 7, 11, 16, 21), STEPS)


class Drifting(nn.Module):
    """Its stack adds residuals[step], whatever x is; its one block is probed."""

    def __init__(self, residuals: Tensor) -> None:
        super().__init__()
        self.residuals, self.residual_cache, self.block = residuals, None, nn.Module()
        self.block.residual_cache = None

    def forward(self, x: Tensor, step: int, x_mask: Tensor | None = None) -> Tensor:
        def blocks(x: Tensor, rows) -> Tensor:
            residual = self.residuals[step]
            if self.block.residual_cache is not None:
                self.block.residual_cache.save(1, attn=residual.clone())
            return x + residual

        return self.residual_cache.run(x, 1, blocks)


def added(residuals: Tensor, **settings) -> tuple[Tensor, object]:
    """What every step added: [steps, 2, (T S), C], and the session."""
    model = Drifting(residuals)
    config = AdaCacheConfig(**{"schedule": SOME, "probes": ["block.attn"], "codebook": [(9.0, 4)],
                               **settings})
    zero = torch.zeros_like(residuals[0])
    with torch.no_grad(), adaptive_cache(model, config, STEPS) as session:
        return torch.stack([model(zero, step) for step in range(STEPS)]), session


def polynomial(*coefficients: float) -> Tensor:
    """sum of c_i step^i with directions of their own: [steps, 2, 6, 8], fp64."""
    step = torch.arange(STEPS, dtype=torch.float64)[:, None, None, None]
    return sum(c * step**i * noise(seed=i).double() for i, c in enumerate(coefficients))


def errors(found: Tensor, truth: Tensor) -> Tensor:
    """Of every step, relative: [steps]."""
    return (found - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)


def guided(rows: Tensor, scale: float = GUIDANCE) -> Tensor:
    """[steps, 2, ...], a conditional and an unconditional row -> [steps, ...]."""
    return rows[:, 1] + scale * (rows[:, 0] - rows[:, 1])


@pytest.mark.parametrize("order", [1, 2])
def test_a_steady_drift_is_foretold_exactly(order):
    truth = polynomial(1.0, 0.3)
    found, _ = added(truth, forecast=order)
    assert errors(found, truth)[2:].max() < 1e-5  # after three computed steps: a slope, and what it was worth
    assert errors(added(truth, forecast=0)[0], truth).max() > 0.1


def test_a_bend_is_foretold_nearly():
    truth = polynomial(1.0, 0.3, 0.05)
    reuse, line, parabola = (errors(added(truth, forecast=order)[0], truth)[5:].mean() for order in (0, 1, 2))
    assert line < 0.5 * reuse
    assert parabola < 0.6 * line


def test_what_nothing_foretells_is_reused_as_it_is():
    truth = torch.randn(STEPS, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    truth[1::2] *= -1
    reuse, _ = added(truth, forecast=0)
    for order in (1, 2):
        found, _ = added(truth, forecast=order)
        assert torch.equal(found[:3], reuse[:3])  # no history yet
        assert errors(found, truth).mean() < 1.1 * errors(reuse, truth).mean()


def test_the_error_in_the_trace_is_that_of_what_would_have_been_added():
    grain = torch.randn(STEPS, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    truth = polynomial(1.0, 0.3, 0.05) + 0.1 * grain
    for order in (0, 1, 2):
        _, session = added(truth, forecast=order, schedule=None, guard=1e9)
        computed = session.trace[0].computed_steps
        for decision in session.trace[0].decisions:
            # the same run, but at this step the cache goes on reusing
            until = [step for step in computed if step < decision.step]
            found, _ = added(truth, forecast=order, schedule=FixedSchedule(tuple(until), STEPS))
            expected = errors(guided(found), guided(truth))[decision.step].item()
            assert decision.error == pytest.approx(expected, rel=1e-4, abs=1e-6)
            assert len(decision.weights) == order


def test_without_forecast_and_guard_nobody_asks_for_the_error():
    _, session = added(polynomial(1.0, 0.3), schedule=None)
    assert {(d.error, d.weights) for d in session.trace[0].decisions} == {(None, ())}
    assert "error" not in session.trace.to_json()["videos"][0]["decisions"][0]


def test_each_order_is_one_more_tensor():
    truth = polynomial(1.0, 0.3)
    held = [added(truth, forecast=order)[1].cache_bytes for order in (0, 1, 2)]
    assert held == [n * truth[0].nbytes for n in (1, 2, 3)]


@pytest.mark.parametrize("order", [1, 2])
def test_a_video_s_forecast_is_its_own_in_any_batch(order):
    model, x = toy(), noise(rows=6, seed=3) * torch.linspace(0.3, 3.0, 3).repeat(2)[:, None, None]
    config = AdaCacheConfig(codebook=[(0.105, 5), (0.112, 4), (0.12, 3), (9.0, 2)], probes=["blocks.1.attn"],
                            forecast=order, guard=0.05)
    with adaptive_cache(model, config, STEPS) as together:
        out = sample(model, STEPS, x)
    for video in range(3):
        with adaptive_cache(model, config, STEPS) as alone:
            own = sample(model, STEPS, x[video::3])
        assert alone.trace[0].computed_steps == together.trace[video].computed_steps
        torch.testing.assert_close(out[video::3], own, rtol=1e-5, atol=1e-6)
    assert len({tuple(v.computed_steps) for v in together.trace}) > 1, "the test shows nothing"


def test_a_replay_forecasts_the_same_and_waits_for_no_device():
    model, x = toy(), noise()
    settings = dict(codebook=[(0.105, 5), (0.12, 3), (9.0, 2)], probes=["blocks.1.attn"], forecast=2)
    with adaptive_cache(model, AdaCacheConfig(**settings), STEPS) as session:
        recorded = sample(model, STEPS, x)
    replay = FixedSchedule.from_json(session.trace.to_json())
    with adaptive_cache(model, AdaCacheConfig(**settings, schedule=replay), STEPS):
        assert torch.equal(sample(model, STEPS, x), recorded)
    model.to("meta")  # where nobody can wait for a number
    with adaptive_cache(model, AdaCacheConfig(**settings, schedule=replay), STEPS):
        sample(model, STEPS, x.to("meta"))


@pytest.mark.parametrize("error, reach, bound, order, rate", [
    (0.04, 1, 0.01, 2, 1),    # too much at one step
    (0.01, 1, 0.01, 2, 2),    # just right one step ahead: the next but one is computed
    (0.01, 3, 0.04, 1, 7),    # twice as far: the last reused step is the 6th
    (0.01, 3, 0.04, 2, 7),
    (0.01, 3, 0.04, 0, 13),   # plain reuse errs linearly: four times as far
    (0.04, 4, 0.01, 0, 2),
    (0.0, 3, 0.04, 2, math.inf),
    (math.nan, 3, 0.04, 2, 1),
    (math.inf, 3, 0.04, 2, 1),
    (0.01, 0, 0.04, 2, 1),    # no history
])
def test_the_guard_s_longest_rate(error, reach, bound, order, rate):
    assert longest_rate(error, reach, bound, order) == rate


def terms_of(basis: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
    """basis: [b, n, 3].  change: [b, 3]."""
    return basis @ basis.mT, (basis @ change[:, :, None])[..., 0]


@pytest.mark.parametrize("order", [1, 2])
def test_no_fit_is_worse_than_none(order):
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(200, order, 3, generator=generator)
    basis[:50, -1] = basis[:50, 0] * 1.01  # nearly parallel
    basis[50:60] = 0
    change = torch.randn(200, 3, generator=generator)
    weights = fitted(*terms_of(basis, change))
    left = change - (weights[:, :, None] * basis).sum(1)
    assert (left.norm(dim=1) <= change.norm(dim=1) + 1e-5).all()
    assert (weights >= 0).all() and (weights <= LARGEST).all()
    gained = explained(weights, *terms_of(basis, change))
    torch.testing.assert_close(gained, change.square().sum(1) - left.square().sum(1), rtol=1e-4, atol=1e-4)


def test_a_change_that_the_terms_explain_is_explained():
    basis = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]])
    change = 0.5 * basis[:, 0] + 0.7 * basis[:, 1]
    assert fitted(*terms_of(basis, change))[0].tolist() == pytest.approx([0.5, 0.7])


def test_the_rows_of_a_video_are_trusted_together():
    """Rows 0 and 2 are of one video, 1 and 3 of another."""
    basis = torch.tensor([1.0, 0.0, 0.0]).expand(4, 1, 3)
    change = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [1.0, 1.0, 0], [1.0, 3.0, 0]])
    terms, along = terms_of(basis, change)
    weights = fitted(terms, along)
    assert weights.tolist() == [[1.0]] * 4
    changed = change.square().sum(1)
    # 2 of 3 explained, and 2 of 11; row by row it would be 1, 1, 1/2 and 1/10
    together = trusted(weights, terms, along, changed, videos=2)
    assert together[:, 0].tolist() == [1.0, 0.0, 1.0, 0.0]
    alone = trusted(weights, terms, along, changed, videos=4)
    assert alone[:, 0].tolist() == [1.0, 1.0, 1.0, 0.0]


def test_nothing_is_foretold_across_a_change_of_the_conditions():
    truth = polynomial(1.0, 0.3)
    truth[12:] += 5 * truth[0]  # a jump, along the drift
    model = Drifting(truth)
    config = AdaCacheConfig(codebook=[(9.0, 3)], probes=["block.attn"], forecast=2, decide="batch")
    zero = torch.zeros_like(truth[0])
    mask = [torch.ones(2, 3), torch.zeros(2, 3)]
    with torch.no_grad(), adaptive_cache(model, config, STEPS) as session:
        found = torch.stack([model(zero, step, mask[step >= 12]) for step in range(STEPS)])
    assert 12 in session.trace[0].computed_steps
    after = [d for d in session.trace[0].decisions if d.step >= 12]
    assert after[0].weights == (0.0, 0.0)  # and plain reuse until there is a history again
    reused = [step for step in range(13, STEPS) if step not in session.trace[0].computed_steps]
    last = [max(s for s in session.trace[0].computed_steps if s < step) for step in reused]
    plain = torch.stack([truth[step] for step in last])
    assert (errors(found[reused], truth[reused]) <= errors(plain, truth[reused]) + 1e-6).all()


def test_the_guard_caps_the_codebook():
    truth = polynomial(1.0, 0.3)
    _, free = added(truth, schedule=None, codebook=[(9.0, 6)])
    assert free.trace[0].computed_steps == [0, 1, 7, 13, 19, 22, 23]
    _, guarded = added(truth, schedule=None, codebook=[(9.0, 6)], guard=0.1)
    for decision in guarded.trace[0].decisions:
        assert 1 <= decision.rate <= 6
    assert len(guarded.trace[0].computed_steps) > 7
    found, _ = added(truth, schedule=None, codebook=[(9.0, 6)], guard=0.1)
    assert errors(found, truth)[8:].max() < 0.11


def test_a_guard_computes_the_last_steps_only_where_they_are_needed():
    drift = polynomial(1.0, 0.3)
    settings = dict(schedule=None, codebook=[(9.0, 6)], forecast=1)
    _, free = added(drift, **settings)
    assert free.trace[0].computed_steps[-2:] == [STEPS - 2, STEPS - 1]
    found, guarded = added(drift, **settings, guard=0.1)
    assert guarded.trace[0].computed_steps[-1] < STEPS - 1
    assert errors(found, drift)[3:].max() < 1e-4


def test_errors_count_as_guidance_multiplies_them():
    """Two videos err by as much, one in both rows alike, one the other way round: there guidance adds up."""
    noise_of = torch.randn(STEPS, 1, 6, 8, generator=torch.Generator().manual_seed(0)).double() * 0.01
    still = noise(seed=5)[:1].double().expand(4, 6, 8)
    signs = torch.tensor([1.0, 1.0, 1.0, -1.0])[:, None, None]  # rows: c of both videos, u of both
    _, session = added(still + signs * noise_of, schedule=None, guard=1e9)
    alike, against = ([d.error for d in video.decisions] for video in session.trace)
    for one, other in zip(alike, against, strict=True):
        assert other == pytest.approx((2 * GUIDANCE - 1) * one, rel=0.1)


def test_without_guidance_a_row_s_error_is_its_own():
    truth = torch.randn(STEPS, 2, 6, 8, generator=torch.Generator().manual_seed(0)).double()
    _, session = added(truth, schedule=None, guard=1e9, rows_per_video=1)
    for row, video in enumerate(session.trace):
        before = dict(zip(video.computed_steps[1:], video.computed_steps, strict=False))
        own = [((truth[before[d.step], row] - truth[d.step, row]).norm() / truth[d.step, row].norm()).item()
               for d in video.decisions]
        assert [d.error for d in video.decisions] == pytest.approx(own, rel=1e-4)


def test_long_residuals_are_summed_in_pieces(monkeypatch):
    truth = polynomial(1.0, 0.3, 0.05)
    whole, session = added(truth, schedule=None, codebook=[(9.0, 6)], forecast=2, guard=0.1)
    monkeypatch.setattr(inner_products, "AT_ONCE", 2 * 4 * 4 * 8)  # 4 of 6 tokens
    pieces, again = added(truth, schedule=None, codebook=[(9.0, 6)], forecast=2, guard=0.1)
    assert again.trace[0].computed_steps == session.trace[0].computed_steps
    torch.testing.assert_close(pieces, whole, rtol=1e-5, atol=1e-6)


def test_where_half_precision_has_no_difference_the_residual_is_reused():
    truth = torch.full((STEPS, 2, 6, 8), 4e4, dtype=torch.float16)
    truth[1::2] *= -1
    found, _ = added(truth, forecast=2)
    assert found.isfinite().all()


def test_weights_are_single_precision_whatever_the_default_is():
    torch.set_default_dtype(torch.bfloat16)
    try:
        _, session = added(polynomial(1.0, 0.3).bfloat16(), schedule=None, forecast=1, guard=0.2)
    finally:
        torch.set_default_dtype(torch.float32)
    assert len(session.trace[0].decisions[0].weights) == 1


def test_autocast_takes_no_bits_from_errors_and_weights():
    truth = polynomial(1.0, 0.3, 0.05) + 0.1 * torch.randn(
        STEPS, 2, 6, 8, generator=torch.Generator().manual_seed(0)).double()
    settings = dict(schedule=None, codebook=[(9.0, 3)], forecast=2, guard=1.0)
    _, plain = added(truth.float(), **settings)
    with torch.autocast("cpu", torch.bfloat16):
        _, cast = added(truth.float(), **settings)
    assert cast.trace[0].decisions == plain.trace[0].decisions


@pytest.mark.parametrize("decide, errs", [("row", [1.0, 1.0]), ("batch", [9.0])])
def test_errors_of_rows_that_decide_alone_or_for_all(decide, errs):
    """The rows of a video err the other way round: for themselves by 1, after guidance by 2 s - 1."""
    noise_of = torch.randn(STEPS, 1, 6, 8, generator=torch.Generator().manual_seed(0)).double() * 0.01
    still = noise(seed=5)[:1].double().expand(2, 6, 8)
    _, session = added(still + torch.tensor([1.0, -1.0])[:, None, None] * noise_of, schedule=None, guard=1e9,
                       decide=decide)
    truth = still[0] + noise_of[:, 0]
    own = ((truth[0] - truth[1]).norm() / truth[1].norm()).item()  # at step 1
    assert [video.decisions[0].error / own for video in session.trace] == pytest.approx(errs, rel=0.1)
