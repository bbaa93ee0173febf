"""12 and 8 of 30 steps: fewer steps, plain reuse and forecasts on given schedules."""
_base_ = "../shapes/sample.py"
# k of 30 steps at about 29 (i / (k - 1))^power
twelve = {
    "1.6": [0, 1, 2, 4, 6, 8, 11, 14, 17, 21, 25, 29],
    "2": [0, 1, 2, 3, 4, 6, 9, 12, 15, 19, 24, 29],
    "2.5": [0, 1, 2, 3, 4, 5, 6, 9, 13, 18, 23, 29],
}
eight = {
    "2": [0, 1, 2, 5, 9, 15, 21, 29],
    "2.5": [0, 1, 2, 4, 7, 12, 20, 29],
    "3": [0, 1, 2, 3, 6, 11, 18, 29],
}


def fixed(steps, forecast=0):
    schedule = dict(num_steps=30, computed_steps=steps)
    return dict(schedule=schedule, probes=["temporal_blocks.2.attn"], forecast=forecast)


methods = {
    "12 steps in all": dict(steps=12),
    "8 steps in all": dict(steps=8),
    **{f"12: reuse, power {power}": dict(adacache=fixed(steps), against="12 steps in all")
       for power, steps in twelve.items()},
    **{f"12: forecast {order}, power {power}": dict(adacache=fixed(twelve[power], order),
                                                    against=f"12: reuse, power {power}")
       for power in ("2", "2.5") for order in (1, 2)},
    **{f"8: reuse, power {power}": dict(adacache=fixed(steps), against="8 steps in all")
       for power, steps in eight.items()},
    **{f"8: forecast {order}, power {power}": dict(adacache=fixed(eight[power], order),
                                                   against=f"8: reuse, power {power}")
       for power in ("2.5", "3") for order in (1, 2)},
}
del twelve, eight, fixed
