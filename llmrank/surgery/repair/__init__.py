"""Repairs: new weights of output maps that make up for removed neurons, without training."""

from llmrank.surgery.repair.base_repair import BaseRepair, RepairedMap
from llmrank.surgery.repair.bias import BiasRepair
from llmrank.surgery.repair.least_squares import LeastSquaresRepair
from llmrank.surgery.repair.moments import MissingOutput, Moments
from llmrank.surgery.repair.sequential import repair_ffns, repair_summary, substitute

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
