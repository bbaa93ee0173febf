"""Schedules that every video finds for itself, against fixed ones of the same cost; 30 steps."""
_base_ = "base/reuse.py"


def adaptive(codebook="fast", **settings):
    return dict(codebook=codebook, probes=["temporal_blocks.2.attn"], **settings)


def fixed(steps):
    schedule = dict(num_steps=30, computed_steps=steps)
    return dict(schedule=schedule, probes=["temporal_blocks.2.attn"], forecast=2)


methods = {
    "published fast": dict(adacache=adaptive("published-fast")),
    "published fast, MoReg": dict(adacache=adaptive("published-fast", moreg=dict()),
                                  against="published fast"),
    # a guard alone bounds the change that has accumulated since the last computed step
    "guard of 0.3, reuse": dict(adacache=adaptive("fast", forecast=0, guard=0.3), against="published fast"),
    "published slow": dict(adacache=adaptive("published-slow")),
    "fixed 12, forecast 2": dict(adacache=fixed([0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 25, 28])),
    "fast": dict(adacache=adaptive("fast"), against="fixed 12, forecast 2"),
    "fixed 16, forecast 2": dict(adacache=fixed([0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 17, 21, 24, 27, 29])),
    "slow": dict(adacache=adaptive("slow"), against="fixed 16, forecast 2"),
    "fast, no guard": dict(adacache=adaptive("fast", guard=1e9), against="fast"),
    "fast's steps, reuse": dict(adacache=adaptive("fast", forecast=0), replay="fast", against="fast"),
    "slow's steps, reuse": dict(adacache=adaptive("slow", forecast=0), replay="slow", against="slow"),
    "fast, MoReg": dict(adacache=adaptive("fast", moreg=dict()), against="fast"),
}
del adaptive, fixed
