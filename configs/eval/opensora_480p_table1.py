"""The paper's Table 1 (480p, 2 s, 30 steps) with the released weights; needs a GPU.

In brackets stand the published numbers (A100).  The paper samples VBench's prompts, its AdaCache rows with a
first frame as condition, those of rivals from text alone; this config samples from text alone.  The prompts
here are a few of our own: for the paper's, give a file with one a line,
`--cfg-options prompt=None prompt_path=FILE`.
"""
_base_ = "../opensora-v1-2/inference/480p_30.py"
evaluation = dict(flops_videos=1, gallery=4)
prompt = [
    "a fishing boat leaves a small harbour at dawn, gulls circling above the mast",
    "close-up of rain running down a window at night, city lights blurred behind it",
    "a red kite climbs over a windy beach while a child runs below",
    "a tram turns slowly through a narrow street after snowfall",
    "time-lapse of clouds passing over a wheat field",
    "a street cook tosses noodles in a wok, flames rising",
    "an old man plays chess in a park, leaves falling around him",
    "a drone flies along a river between steep green cliffs",
]


def row(vbench=None, psnr=None, lpips=None, ssim=None, tflops=None, seconds=None, speedup=None):
    values = dict(vbench=vbench and vbench / 100, psnr=psnr, lpips=lpips, ssim=ssim, tflops=tflops,
                  seconds_total=seconds, speedup_total=speedup)
    return {name: value for name, value in values.items() if value is not None}


methods = {
    "Open-Sora": dict(published=row(vbench=79.22, tflops=3230.24, seconds=54.02, speedup=1.00)),
    "fewer steps, 13": dict(steps=13),
    "PAB, slow": dict(rival=dict(type="pab", spatial=2, temporal=4, cross=6),
                      published=row(78.51, 27.04, 0.0925, 0.8847, 2657.70, 44.93, 1.20)),
    "PAB, fast": dict(rival=dict(type="pab", spatial=5, temporal=7, cross=9),
                      published=row(76.95, 23.58, 0.1743, 0.8220, 2558.25, 40.23, 1.34)),
    "T-GATE": dict(rival=dict(type="tgate", gate=12, sp_interval=2),
                   published=row(77.61, 15.50, 0.3495, 0.6760, 2818.40, 49.11, 1.10)),
    "Delta-DiT": dict(rival=dict(type="delta_dit", gate=25, blocks=5),
                      published=row(78.21, 11.91, 0.5692, 0.4811, 3166.47)),
    "TeaCache, slow": dict(rival=dict(type="teacache", threshold=0.1)),
    "TeaCache, fast": dict(rival=dict(type="teacache", threshold=0.2)),
    "AdaCache as published, slow": dict(
        adacache=dict(codebook="published-slow", granularity="block"),
        published=row(79.66, 29.97, 0.0456, 0.9085, 2195.50, 37.01, 1.46)),
    "AdaCache as published, fast": dict(
        adacache=dict(codebook="published-fast", granularity="block"),
        published=row(79.39, 24.92, 0.0981, 0.8375, 1331.97, 24.16, 2.24)),
    "AdaCache as published, fast + MoReg": dict(
        adacache=dict(codebook="published-fast", granularity="block", moreg=dict()),
        against="AdaCache as published, fast",
        published=row(79.48, 25.78, 0.0867, 0.8530, 1383.66, 25.71, 2.10)),
    "AdaCache, slow": dict(adacache=dict(codebook="slow"), against="AdaCache as published, slow"),
    "AdaCache, fast": dict(adacache=dict(codebook="fast"), against="AdaCache as published, fast"),
}
del row
