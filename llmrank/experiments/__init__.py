"""Experiments: many ways to prune models, measured by one protocol."""

from llmrank.experiments.settings import RowSettings, SweepSettings
from llmrank.experiments.sweep import sweep
from llmrank.experiments.sweep_result import SweepResult

__all__ = ["RowSettings", "SweepResult", "SweepSettings", "sweep"]
