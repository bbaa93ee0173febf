_base_ = "base.py"
resolution = "480p"
scheduler = dict(num_sampling_steps=100)
