"""The paper's ablation (b), on the embedded model: the depth of the block whose residual is measured."""
_base_ = "base/ablation.py"


def published(probes=("temporal_blocks.2.attn",), codebook="published-fast", **settings):
    # for each video, so that videos of one batch do not decide for one another
    return dict(codebook=codebook, probes=probes, decide="video", **settings)


methods = {
    "middle": dict(adacache=published()),
    "start": dict(adacache=published(["temporal_blocks.0.attn"]), against="middle"),
    "end": dict(adacache=published(["temporal_blocks.3.attn"]), against="middle"),
    "start, middle and end": dict(
        adacache=published([f"temporal_blocks.{depth}.attn" for depth in (0, 2, 3)]), against="middle"),
}
del published
