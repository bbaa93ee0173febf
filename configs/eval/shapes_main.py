"""The paper's Table 1 on the embedded model: AdaCache and its rivals, 30 steps, 128 held-out prompts."""
_base_ = "../shapes/sample.py"
evaluation = dict(prompts=128, groups=dict(
    fast="quickly", slow="^(?!.*quickly).*(slowly|still)"))
profiles = "configs/shapes/profiles/30_steps"
rivals = "configs/eval/rivals/shapes_30"


def adaptive(codebook, **settings):
    return dict(codebook=codebook, probes=["temporal_blocks.2.attn"], **settings)


def uniform(steps):
    schedule = dict(num_steps=30, computed_steps=[i * 30 // steps for i in range(steps)])
    return dict(schedule=schedule, probes=["temporal_blocks.2.attn"], forecast=0)


methods = {
    "no cache": dict(),
    # the controls: what any cache must beat
    **{f"fewer steps, {steps}": dict(steps=steps, against=f"AdaCache calibrated, {speed}x")
       for steps, speed in ((20, "1.5"), (12, "2.5"))},
    **{f"uniform reuse, {steps}": dict(adacache=uniform(steps), against=f"AdaCache calibrated, {speed}x")
       for steps, speed in ((20, "1.5"), (12, "2.5"))},
    # the paper
    "AdaCache as published, slow": dict(adacache=adaptive("published-slow")),
    "AdaCache as published, fast": dict(adacache=adaptive("published-fast")),
    "AdaCache as published, fast + MoReg": dict(
        adacache=adaptive("published-fast", moreg=dict()), against="AdaCache as published, fast"),
    "AdaCache as published, fast + forecast": dict(
        adacache=adaptive("published-fast", forecast=2), against="AdaCache as published, fast"),
    # this project
    "AdaCache, slow": dict(adacache=adaptive("slow")),
    "AdaCache, fast": dict(adacache=adaptive("fast"), against="AdaCache as published, fast"),
    "AdaCache, fast + MoReg": dict(adacache=adaptive("fast", moreg=dict()), against="AdaCache, fast"),
    # against uncached: of adherence, in table.csv and results.json
    **{f"AdaCache calibrated, {speed}x": dict(adacache=f"{profiles}_{speed}x.json", against="no cache")
       for speed in ("1.5", "2", "2.5", "3")},
    # rivals, each tuned by its own procedure (scripts/tune_rivals.py)
    **{f"{name}, {speed}x": dict(rival=f"{rivals}/{file}_{speed}x.json",
                                 against=f"AdaCache calibrated, {speed}x")
       for speed in ("1.5", "2.5")
       for name, file in (("TeaCache", "teacache"), ("FirstBlockCache", "first_block_cache"))},
    # each against AdaCache's nearest speed
    **{f"Delta-DiT, {speed}x": dict(rival=f"{rivals}/delta_dit_{speed}x.json",
                                    against=f"AdaCache calibrated, {nearest}x")
       for speed, nearest in (("1.5", "1.5"), ("2.5", "3"))},
    "T-GATE, 1.5x": dict(rival=f"{rivals}/tgate_1.5x.json", against="AdaCache calibrated, 1.5x"),
    "T-GATE, fastest found": dict(rival=f"{rivals}/tgate_2.5x.json", against="AdaCache calibrated, 2x"),
    "PAB, as published (2, 4, 6)": dict(rival=dict(type="pab"), against="AdaCache calibrated, 1.5x"),
    "PAB, tuned": dict(rival=f"{rivals}/pab_1.5x.json", against="AdaCache calibrated, 1.5x"),
    **{f"offline schedule, {speed}x": dict(adacache=f"{rivals}/offline_schedule_{speed}x.json",
                                           against=f"AdaCache calibrated, {speed}x")
       for speed in ("1.5", "2.5")},
    # how much of the difference the forecast makes
    **{f"offline schedule + forecast, {speed}x": dict(
        adacache=adaptive("fast", forecast=2), replay=f"offline schedule, {speed}x",
        against=f"offline schedule, {speed}x") for speed in ("1.5", "2.5")},
}
del adaptive, uniform, profiles, rivals
