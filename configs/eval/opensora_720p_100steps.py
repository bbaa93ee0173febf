"""The paper's 720p runs (2 s, 100 steps) with the released weights; needs a GPU.

In brackets stand the published numbers (A100), with a first frame as condition; this config samples from text
alone.
"""
_base_ = "../opensora-v1-2/inference/720p_100.py"
evaluation = dict(flops_videos=1, gallery=4)
prompt = [
    "a fishing boat leaves a small harbour at dawn, gulls circling above the mast",
    "a red kite climbs over a windy beach while a child runs below",
    "a street cook tosses noodles in a wok, flames rising",
    "a drone flies along a river between steep green cliffs",
]
methods = {
    "Open-Sora": dict(published=dict(seconds_total=419.60, speedup_total=1.0)),
    "fewer steps, 21": dict(steps=21),
    "AdaCache as published, fast": dict(
        adacache=dict(codebook="published-fast", granularity="block"),
        published=dict(seconds_total=89.53, speedup_total=4.7)),
    "AdaCache as published, fast + MoReg": dict(
        adacache=dict(codebook="published-fast", granularity="block", moreg=dict()),
        against="AdaCache as published, fast",
        published=dict(seconds_total=93.50, speedup_total=4.5)),
    "TeaCache, fast": dict(rival=dict(type="teacache", threshold=0.2)),
    "AdaCache, fast": dict(adacache=dict(codebook="fast"), against="AdaCache as published, fast"),
}
