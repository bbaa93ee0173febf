"""The paper's ablation (c), on the embedded model: which residual of that block is measured."""
_base_ = "base/ablation.py"


def published(probes=("temporal_blocks.2.attn",), codebook="published-fast", **settings):
    # for each video, so that videos of one batch do not decide for one another
    return dict(codebook=codebook, probes=probes, decide="video", **settings)


methods = {
    "temporal attention": dict(adacache=published()),
    "spatial attention": dict(adacache=published(["spatial_blocks.2.attn"]), against="temporal attention"),
    "cross attention": dict(adacache=published(["temporal_blocks.2.cross"]), against="temporal attention"),
    "MLP": dict(adacache=published(["temporal_blocks.2.mlp"]), against="temporal attention"),
    "cross attention and MLP": dict(
        adacache=published(["spatial_blocks.2.cross_mlp", "temporal_blocks.2.cross_mlp"]),
        against="temporal attention"),
}
del published
