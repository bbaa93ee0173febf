"""19 of 100 steps: fewer steps, plain reuse and forecasts on given schedules."""
_base_ = "../shapes/sample.py"
scheduler = dict(num_sampling_steps=100)
# at about 99 (i / 18)^power
nineteen = {
    "1.5": [0, 1, 4, 7, 10, 14, 19, 24, 29, 35, 41, 47, 54, 61, 68, 75, 83, 91, 99],
    "2": [0, 1, 2, 3, 5, 8, 11, 15, 20, 25, 31, 37, 44, 52, 60, 69, 78, 88, 99],
}


def fixed(steps, forecast=0):
    schedule = dict(num_steps=100, computed_steps=steps)
    return dict(schedule=schedule, probes=["temporal_blocks.2.attn"], forecast=forecast)


methods = {
    "19 steps in all": dict(steps=19),
    **{f"reuse, power {power}": dict(adacache=fixed(steps), against="19 steps in all")
       for power, steps in nineteen.items()},
    **{f"forecast {order}, power {power}": dict(adacache=fixed(steps, order), against=f"reuse, power {power}")
       for power, steps in nineteen.items() for order in (1, 2)},
}
del nineteen, fixed
