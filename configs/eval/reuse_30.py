"""What to do between computed steps: 12 of 30."""
_base_ = "../shapes/sample.py"
even = [0, 2, 4, 6, 9, 11, 14, 17, 20, 23, 26, 29]
dense = [0, 1, 2, 3, 4, 6, 9, 12, 15, 19, 24, 29]
denser = [0, 1, 2, 3, 4, 5, 6, 9, 13, 18, 23, 29]


def fixed(steps, **settings):
    schedule = dict(num_steps=30, computed_steps=steps)
    return dict(schedule=schedule, probes=["temporal_blocks.2.attn"], **settings)


methods = {
    "12 steps in all": dict(steps=12),
    "evenly spread": dict(adacache=fixed(even)),
    "reuse": dict(adacache=fixed(dense), against="12 steps in all"),
    "forecast 1": dict(adacache=fixed(dense, forecast=1), against="reuse"),
    "forecast 2": dict(adacache=fixed(dense, forecast=2), against="reuse"),
    "reuse, denser": dict(adacache=fixed(denser), against="reuse"),
    "forecast 2, denser": dict(adacache=fixed(denser, forecast=2), against="reuse"),
}
del even, dense, denser, fixed
