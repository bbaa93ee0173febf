_base_ = "720p_100_fast.py"
adacache = dict(moreg=dict())
