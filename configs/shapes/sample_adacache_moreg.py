"""The embedded model with AdaCache and motion regularization."""
_base_ = "sample_adacache.py"
adacache = dict(moreg=dict())
