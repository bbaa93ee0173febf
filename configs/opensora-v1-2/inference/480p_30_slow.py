_base_ = "480p_30.py"
adacache = dict(codebook="published-slow")
