_base_ = "480p_100_fast.py"
adacache = dict(moreg=dict())
