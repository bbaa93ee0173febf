_base_ = "480p_30_fast.py"
adacache = dict(moreg=dict())
