"""The paper's ablation (e), on the embedded model: thresholds and rates of the codebook."""
_base_ = "base/ablation.py"


def published(probes=("temporal_blocks.2.attn",), codebook="published-fast", **settings):
    # for each video, so that videos of one batch do not decide for one another
    return dict(codebook=codebook, probes=probes, decide="video", **settings)


methods = {
    "fast": dict(adacache=published()),
    "slow": dict(adacache=published(codebook="published-slow"), against="fast"),
    "fast, thresholds halved": dict(adacache=published(codebook=[
        (0.04, 6), (0.08, 5), (0.12, 4), (0.16, 3), (0.20, 2), (1.00, 1)]), against="fast"),
    "fast, rates up to 4": dict(adacache=published(codebook=[
        (0.16, 4), (0.32, 3), (0.40, 2), (1.00, 1)]), against="fast"),
}
del published
