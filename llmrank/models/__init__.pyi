"""The FFNs of a model, found by their geometry or named by an explicit list."""

from .ffn import FFN, FFNs, LinearMap, PrunableLayer
from .finding.detect import find_ffns
from .finding.explicit import explicit_ffns

__all__ = ["FFN", "FFNs", "LinearMap", "PrunableLayer", "explicit_ffns", "find_ffns"]
