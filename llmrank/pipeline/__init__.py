"""Pipelines: all stages from a model to a pruned one, one after the other."""

from llmrank.pipeline.descriptions import model_source
from llmrank.pipeline.pipelines import (
    BasePipeline,
    ChainedFFNPipeline,
    IsolatedFFNPipeline,
    ResidualFFNPipeline,
)
from llmrank.pipeline.recipe import Recipe
from llmrank.pipeline.texts import DEFAULT_LENGTH, DEFAULT_SAMPLES, CalibrationText, EvaluationText

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
