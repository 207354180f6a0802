"""The FFNs of a model, found by their geometry or named by an explicit list."""

from llmrank.models.detect import find_ffns
from llmrank.models.explicit import explicit_ffns
from llmrank.models.families import FAMILIES, Family
from llmrank.models.ffn import FFN, FFNs, LinearMap, PrunableLayer

__all__ = ["FAMILIES", "FFN", "FFNs", "Family", "LinearMap", "PrunableLayer", "explicit_ffns", "find_ffns"]
