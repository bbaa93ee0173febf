"""AdaCache and MoReg: adaptive caching of residuals in video diffusion transformers (arXiv 2411.02397).

Reading order: config, codebook, metric, moreg, schedule, residual, forecast (with rows, inner_products, fit),
session, attach, trace; then ranks, signature, step_clock, explain; recording, and calibrate, which needs no
model.
"""
from adacache import calibrate, recording
from adacache.attach import adaptive_cache
from adacache.codebook import Codebook
from adacache.config import PUBLISHED_KEYS, AdaCacheConfig, MoRegConfig
from adacache.explain import explain
from adacache.ranks import Ranks
from adacache.schedule import FixedSchedule
from adacache.session import Session
from adacache.signature import Signature
from adacache.trace import Decision, Trace, VideoTrace

__all__ = ["PUBLISHED_KEYS", "AdaCacheConfig", "Codebook", "Decision", "FixedSchedule", "MoRegConfig",
           "Ranks", "Session", "Signature", "Trace", "VideoTrace", "adaptive_cache", "calibrate", "explain",
           "recording"]
