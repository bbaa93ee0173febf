_base_ = "base.py"
resolution = "720p"
scheduler = dict(num_sampling_steps=100)
