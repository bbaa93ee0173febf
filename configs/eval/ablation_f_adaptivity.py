"""The paper's ablation (f), on the embedded model: a schedule for each video, for the batch, or for all."""
_base_ = "base/ablation.py"


def published(probes=("temporal_blocks.2.attn",), codebook="published-fast", **settings):
    # for each video, so that videos of one batch do not decide for one another
    return dict(codebook=codebook, probes=probes, decide="video", **settings)


methods = {
    "each video": dict(adacache=published()),
    "each row": dict(adacache={**published(), "decide": "row"}, against="each video"),
    "the batch": dict(adacache={**published(), "decide": "batch"}, against="each video"),
    "uniform, 10 steps": dict(adacache=dict(
        schedule=dict(num_steps=30, computed_steps=list(range(0, 30, 3))), forecast=0), against="each video"),
    "10 steps in all": dict(steps=10, against="each video"),
}
del published
