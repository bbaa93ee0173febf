_base_ = "720p_100.py"
adacache = dict(codebook="published-fast")
