"""What the ablations share: 64 held-out prompts of the embedded model, 8 videos together."""
_base_ = "../../shapes/sample.py"
evaluation = dict(prompts=64, batch=8, flops_videos=0,
                  metrics=["computed", "psnr", "ssim", "motion", "adherence"])
