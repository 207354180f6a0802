"""Prune language models through an explicit graph of their feed-forward networks."""

from llmrank.checkpoint import load, save
from llmrank.errors import LLMRankError
from llmrank.masks import Masks
from llmrank.pipeline import BasePipeline, ChainedFFNPipeline, IsolatedFFNPipeline, ResidualFFNPipeline
from llmrank.report import Report

__all__ = [
    "BasePipeline",
    "ChainedFFNPipeline",
    "IsolatedFFNPipeline",
    "LLMRankError",
    "Masks",
    "Report",
    "ResidualFFNPipeline",
    "load",
    "save",
]
