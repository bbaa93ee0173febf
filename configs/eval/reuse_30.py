"""12 and 8 of 30 steps: fewer steps, plain reuse and forecasts on given schedules."""
_base_ = "../shapes/sample.py"
# k of 30 steps at about 29 (i / (k - 1))^power
twelve = {
    "2": [0, 1, 2, 3, 4, 6, 9, 12, 15, 19, 24, 29],
    "2.5": [0, 1, 2, 3, 4, 5, 6, 9, 13, 18, 23, 29],
}
eight = {
    "2.5": [0, 1, 2, 4, 7, 12, 20, 29],
    "3": [0, 1, 2, 3, 6, 11, 18, 29],
}


def fixed(steps, forecast=0):
    schedule = dict(num_steps=30, computed_steps=steps)
    return dict(schedule=schedule, probes=["temporal_blocks.2.attn"], forecast=forecast)


methods = {
    "12 steps in all": dict(steps=12),
    "8 steps in all": dict(steps=8),
    **{f"{name}: reuse, power {power}": dict(adacache=fixed(steps), against=f"{name} steps in all")
       for name, group in (("12", twelve), ("8", eight)) for power, steps in group.items()},
    **{f"{name}: forecast 2, power {power}": dict(
        adacache=fixed(steps, 2), against=f"{name}: reuse, power {power}")
       for name, group in (("12", twelve), ("8", eight)) for power, steps in group.items()},
}
del twelve, eight, fixed
