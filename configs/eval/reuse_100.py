"""19 of 100 steps: fewer steps, plain reuse and forecasts on given schedules."""
_base_ = "base/reuse.py"
scheduler = dict(num_sampling_steps=100)
schedules = {
    # about 99 (i / 18)^2
    "power 2": [0, 1, 2, 3, 5, 8, 11, 15, 20, 25, 31, 37, 44, 52, 60, 69, 78, 88, 99],
    # denser where errors grow, by hand, on other prompts
    "dense": [0, 1, 2, 3, 4, 6, 8, 11, 14, 18, 22, 27, 33, 40, 48, 58, 69, 82, 96],
}


def fixed(steps, forecast=0):
    schedule = dict(num_steps=100, computed_steps=steps)
    return dict(schedule=schedule, probes=["temporal_blocks.2.attn"], forecast=forecast)


methods = {
    "19 steps in all": dict(steps=19),
    **{f"reuse ({name})": dict(adacache=fixed(steps), against="19 steps in all")
       for name, steps in schedules.items()},
    **{f"forecast {order} ({name})": dict(adacache=fixed(steps, order), against=f"reuse ({name})")
       for name, steps in schedules.items() for order in (1, 2)},
}
del schedules, fixed
