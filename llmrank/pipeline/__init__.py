"""Pipelines: all stages from a model to a pruned one, one after the other."""

from llmrank.pipeline.base_pipeline import BasePipeline
from llmrank.pipeline.report import model_source
from llmrank.pipeline.texts import DEFAULT_LENGTH, DEFAULT_SAMPLES, CalibrationText, EvaluationText
from llmrank.pipeline.topologies import ChainedFFNPipeline, IsolatedFFNPipeline, ResidualFFNPipeline

__all__ = [
    "DEFAULT_LENGTH",
    "DEFAULT_SAMPLES",
    "BasePipeline",
    "CalibrationText",
    "ChainedFFNPipeline",
    "EvaluationText",
    "IsolatedFFNPipeline",
    "ResidualFFNPipeline",
    "model_source",
]
