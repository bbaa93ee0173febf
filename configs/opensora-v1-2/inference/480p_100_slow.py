_base_ = "480p_100.py"
adacache = dict(codebook="published-slow")
