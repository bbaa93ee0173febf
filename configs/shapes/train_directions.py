"""The shipped transformer, taught which way things move.

The text encoder stays as scripts/separate_words.py left it, so that words cannot merge again.  Given first
frames tell the model which way time runs; the card names the stages.
"""
_base_ = "train_on.py"
model = dict(from_pretrained="outputs/shapes/directions/transformer")
text_encoder = dict(from_pretrained="outputs/shapes/text_encoder")
flow = dict(transform_scale=2.5)
objective = dict(
    _delete_=True,
    mask_share=0.3,
    mask_ratios=dict(image_head=0.6, image_random=0.2, quarter_head=0.1, image_tail=0.1),
)
stages = [dict(until=4700, latent_frames=15, num_frames=51, batch=16)]
loop = dict(lr=2e-3, muon_lr=3e-3, warmup=50, decay_fraction=0.6)
out = "outputs/shapes/directed"
seed = 2
