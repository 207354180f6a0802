"""What llmrank offers; a name is imported when it is first used."""

from . import (
    calibration as calibration,
    errors as errors,
    evaluation as evaluation,
    execution as execution,
    experiments as experiments,
    healing as healing,
    inspection as inspection,
    integrations as integrations,
    models as models,
    pipeline as pipeline,
    progress as progress,
    prune as prune,
    repair as repair,
    score as score,
    surgery as surgery,
    text as text,
)
from .errors import LLMRankError
from .experiments import SweepResult, sweep
from .pipeline import BasePipeline, ChainedFFNPipeline, IsolatedFFNPipeline, ResidualFFNPipeline
from .pipeline.heal import heal, predict
from .pipeline.prune_model import PrunedModel, prune_model
from .pipeline.report import Report
from .prune.masks import Masks
from .surgery.checkpoint import load, save

__version__: str

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
    "calibration",
    "errors",
    "evaluation",
    "execution",
    "experiments",
    "heal",
    "healing",
    "inspection",
    "integrations",
    "load",
    "models",
    "pipeline",
    "predict",
    "progress",
    "prune",
    "prune_model",
    "repair",
    "save",
    "score",
    "surgery",
    "sweep",
    "text",
]
