"""Pipelines: all stages from a model to a pruned one, one after the other."""

from .defaults import DEFAULT_LENGTH, DEFAULT_SAMPLES
from .descriptions import model_source
from .pipelines import (
    BasePipeline,
    ChainedFFNPipeline,
    IsolatedFFNPipeline,
    ResidualFFNPipeline,
)
from .recipe import Recipe
from .texts import CalibrationText, EvaluationText

__all__ = [
    "DEFAULT_LENGTH",
    "DEFAULT_SAMPLES",
    "BasePipeline",
    "CalibrationText",
    "ChainedFFNPipeline",
    "EvaluationText",
    "IsolatedFFNPipeline",
    "Recipe",
    "ResidualFFNPipeline",
    "model_source",
]
