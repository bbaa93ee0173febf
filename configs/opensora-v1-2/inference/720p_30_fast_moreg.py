_base_ = "720p_30_fast.py"
adacache = dict(moreg=dict())
