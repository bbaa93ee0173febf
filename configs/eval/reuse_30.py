"""12 and 8 of 30 steps: fewer steps, plain reuse and forecasts on given schedules."""
_base_ = "base/reuse.py"
schedules = {
    # about 29 (i / (k - 1))^power
    "12, power 2": [0, 1, 2, 3, 4, 6, 9, 12, 15, 19, 24, 29],
    "8, power 2.5": [0, 1, 2, 4, 7, 12, 20, 29],
    # the best found on residuals of other prompts (docs/method.md)
    "12, found": [0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 25, 28],
    "8, found": [0, 1, 2, 3, 6, 11, 18, 25],
}


def fixed(steps, forecast=0):
    schedule = dict(num_steps=30, computed_steps=steps)
    return dict(schedule=schedule, probes=["temporal_blocks.2.attn"], forecast=forecast)


methods = {
    "12 steps in all": dict(steps=12),
    "8 steps in all": dict(steps=8),
    **{f"reuse ({name})": dict(adacache=fixed(steps), against=f"{name.split(',')[0]} steps in all")
       for name, steps in schedules.items()},
    **{f"forecast 2 ({name})": dict(adacache=fixed(steps, 2), against=f"reuse ({name})")
       for name, steps in schedules.items()},
}
del schedules, fixed
