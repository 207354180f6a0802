"""Adapters: from a model to its FFNs, by geometry or by an explicit list."""

from llmrank.adapters.explicit import explicit_ffns
from llmrank.adapters.families import FAMILIES, Family
from llmrank.adapters.ffn import FFN, Projection, PrunableLayer
from llmrank.adapters.geometry import find_ffns

__all__ = ["FAMILIES", "FFN", "Family", "Projection", "PrunableLayer", "explicit_ffns", "find_ffns"]
