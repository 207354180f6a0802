"""Repairs: new weights of output maps that make up for removed neurons, without training."""

from llmrank.repair.base_repair import BaseRepair, RepairedMap
from llmrank.repair.bias import BiasRepair
from llmrank.repair.least_squares import LeastSquaresRepair
from llmrank.repair.moments import MissingOutput, Moments
from llmrank.repair.sequential import repair_ffns, repair_summary, substitute

__all__ = [
    "BaseRepair",
    "BiasRepair",
    "LeastSquaresRepair",
    "MissingOutput",
    "Moments",
    "RepairedMap",
    "repair_ffns",
    "repair_summary",
    "substitute",
]
