"""Adapters: from a model to its FFNs, by geometry or by an explicit list."""

from llmrank.models.detect import find_ffns
from llmrank.models.explicit import explicit_ffns
from llmrank.models.families import FAMILIES, Family
from llmrank.models.ffn import FFN, Projection, PrunableLayer

__all__ = ["FAMILIES", "FFN", "Family", "Projection", "PrunableLayer", "explicit_ffns", "find_ffns"]
