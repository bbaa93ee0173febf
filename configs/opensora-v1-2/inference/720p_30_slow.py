_base_ = "720p_30.py"
adacache = dict(codebook="published-slow")
