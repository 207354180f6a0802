"""Prune language models through an explicit graph of their feed-forward networks."""

from llmrank.errors import LLMRankError
from llmrank.experiments import SweepResult, sweep
from llmrank.pipeline import BasePipeline, ChainedFFNPipeline, IsolatedFFNPipeline, ResidualFFNPipeline
from llmrank.pipeline.heal import heal, predict
from llmrank.pipeline.prune_model import PrunedModel, prune_model
from llmrank.pipeline.report import Report
from llmrank.prune.masks import Masks
from llmrank.surgery.checkpoint import load, save

__all__ = [
    "BasePipeline",
    "ChainedFFNPipeline",
    "IsolatedFFNPipeline",
    "LLMRankError",
    "Masks",
    "PrunedModel",
    "Report",
    "ResidualFFNPipeline",
    "SweepResult",
    "heal",
    "load",
    "predict",
    "prune_model",
    "save",
    "sweep",
]
