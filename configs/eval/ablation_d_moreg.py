"""The paper's ablation (d), on the embedded model: motion regularization, its gradient and its strides."""
_base_ = "base/ablation.py"


def published(probes=("temporal_blocks.2.attn",), codebook="published-fast", **settings):
    # for each video, so that videos of one batch do not decide for one another
    return dict(codebook=codebook, probes=probes, decide="video", **settings)


methods = {
    "without MoReg": dict(adacache=published()),
    "MoReg": dict(adacache=published(moreg=dict()), against="without MoReg"),
    "MoReg without gradient": dict(adacache=published(moreg=dict(gradient=0)), against="without MoReg"),
    "MoReg, strides 1, 2, 4": dict(adacache=published(moreg=dict(strides=[1, 2, 4])),
                                   against="without MoReg"),
}
del published
