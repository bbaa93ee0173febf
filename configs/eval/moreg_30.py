"""Does MoReg pay where its scale is the model's?  The published rule at three speeds, with it and without.

The scale, 0.14, is the mean motion score of 24 prompts that are not reported; m is taken as it is (power 1),
for the published 8th power makes most of them 0 or very large.
"""
_base_ = "base/reuse.py"
evaluation = dict(metrics=["computed", "psnr", "ssim", "motion"],
                  groups=dict(fast="quickly", slow="^(?!.*quickly).*(slowly|still)"))


def published(factor, **settings):
    """The fast codebook with its thresholds times `factor`; each video decides for itself."""
    codebook = ((0.08, 6), (0.16, 5), (0.24, 4), (0.32, 3), (0.40, 2))
    entries = [*((round(factor * threshold, 4), rate) for threshold, rate in codebook), (1.00, 1)]
    return dict(codebook=entries, probes=["temporal_blocks.2.attn"], decide="video", **settings)


def moreg(power):
    return dict(scale=0.14, power=power, gradient=0, window=(2, 29))


methods = {
    **{f"published rule, thresholds x {factor}": dict(adacache=published(factor), family="without MoReg")
       for factor in (1.4, 1.0, 0.7, 0.5)},
    **{f"MoReg, thresholds x {factor}": dict(
        adacache=published(factor, moreg=moreg(1)), family="MoReg",
        against=f"published rule, thresholds x {factor}") for factor in (1.4, 1.0, 0.7)},
    "MoReg squared, thresholds x 1.0": dict(
        adacache=published(1.0, moreg=moreg(2)), family="MoReg squared",
        against="published rule, thresholds x 1.0"),
}
del published, moreg
