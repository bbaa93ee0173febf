"""AdaCache and its rivals on the embedded model at 100 steps, where the paper is 4.7 times as fast."""
_base_ = "../shapes/sample.py"
scheduler = dict(num_sampling_steps=100)
evaluation = dict(prompts=64, flops_videos=2)
profiles = "configs/shapes/profiles/100_steps"
rivals = "configs/eval/rivals/shapes_100"
# as in reuse_100.py
dense = dict(num_steps=100, computed_steps=[
    0, 1, 2, 3, 4, 6, 8, 11, 14, 18, 22, 27, 33, 40, 48, 58, 69, 82, 96])


def adaptive(codebook, **settings):
    return dict(codebook=codebook, probes=["temporal_blocks.2.attn"], **settings)


def uniform(steps):
    schedule = dict(num_steps=100, computed_steps=[i * 100 // steps for i in range(steps)])
    return dict(schedule=schedule, probes=["temporal_blocks.2.attn"], forecast=0)


methods = {
    "no cache": dict(),
    "fewer steps, 21": dict(steps=21, against="AdaCache calibrated, 4.7x"),
    "uniform reuse, 20": dict(adacache=uniform(20), against="AdaCache calibrated, 4.7x"),
    "AdaCache as published, fast": dict(adacache=adaptive("published-fast")),
    "AdaCache as published, fast + MoReg": dict(
        adacache=adaptive("published-fast", moreg=dict()), against="AdaCache as published, fast"),
    "AdaCache, fast": dict(adacache=adaptive("fast"), against="AdaCache as published, fast"),
    # against uncached: of adherence, in table.csv and results.json
    **{f"AdaCache calibrated, {speed}x": dict(adacache=f"{profiles}_{speed}x.json", against="no cache")
       for speed in ("3", "4.7", "5")},
    "AdaCache, 19 steps by hand": dict(
        adacache=dict(schedule=dense, probes=["temporal_blocks.2.attn"], forecast=2),
        against="AdaCache calibrated, 4.7x"),
    **{f"{name}, 4.7x": dict(rival=f"{rivals}/{file}_4.7x.json", against="AdaCache calibrated, 4.7x")
       for name, file in (("TeaCache", "teacache"), ("FirstBlockCache", "first_block_cache"))},
    **{f"{name}, fastest found": dict(rival=f"{rivals}/{file}_4.7x.json",
                                     against="AdaCache calibrated, 3x")
       for name, file in (("PAB", "pab"), ("T-GATE", "tgate"), ("Delta-DiT", "delta_dit"))},
    "offline schedule, 4.7x": dict(adacache=f"{rivals}/offline_schedule_4.7x.json",
                                   against="AdaCache calibrated, 4.7x"),
}
del adaptive, uniform, profiles, rivals, dense
