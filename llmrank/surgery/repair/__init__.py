"""Repair of what was removed, without training."""

from llmrank.surgery.repair.methods import BaseRepair, BiasRepair, LeastSquaresRepair, RepairedMap
from llmrank.surgery.repair.moments import MissingOutput, Moments
from llmrank.surgery.repair.sequential import repair_ffns, substitute, summary

__all__ = [
    "BaseRepair",
    "BiasRepair",
    "LeastSquaresRepair",
    "MissingOutput",
    "Moments",
    "RepairedMap",
    "repair_ffns",
    "substitute",
    "summary",
]
