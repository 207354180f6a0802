"""Repairs: new weights of output maps that make up for removed neurons, without training."""

from .base_repair import BaseRepair, RepairedMap
from .bias import BiasRepair
from .least_squares import LeastSquaresRepair
from .moments import MissingOutput, Moments
from .sequential import repair_ffns, repair_summary, substitute

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
