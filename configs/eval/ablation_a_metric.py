"""The paper's ablation (a), on the embedded model: how the change of a residual is measured."""
_base_ = "base/ablation.py"


def published(probes=("temporal_blocks.2.attn",), codebook="published-fast", **settings):
    # for each video, so that videos of one batch do not decide for one another
    return dict(codebook=codebook, probes=probes, decide="video", **settings)


methods = {
    "L1": dict(adacache=published()),
    "L2": dict(adacache=published(metric="l2"), against="L1"),
    "cosine": dict(adacache=published(metric="cosine"), against="L1"),
}
del published
