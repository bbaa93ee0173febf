"""The embedded model with AdaCache as calibrated for 2.5 times the speed (scripts/calibrate.py)."""
_base_ = "sample.py"
adacache = "configs/shapes/profiles/30_steps_2.5x.json"
