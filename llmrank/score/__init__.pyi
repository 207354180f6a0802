"""Scorers: they compute the importance of every node of a graph."""

from .auto import AutoScorer
from .base_scorer import BaseScorer
from .baselines import ActivationScorer, NormScorer, RandomScorer
from .expert_scorers import EANScorer, ExpertScorer, FrequencyScorer, MoNEScorer, REAPScorer
from .forward_backward import ForwardBackwardScorer
from .pagerank import ModifiedPageRankScorer, WeightedPageRankScorer
from .weighted_statistics import FLAPScorer, WandaScorer, WandaSPScorer

__all__ = [
    "ActivationScorer",
    "AutoScorer",
    "BaseScorer",
    "EANScorer",
    "ExpertScorer",
    "FLAPScorer",
    "ForwardBackwardScorer",
    "FrequencyScorer",
    "MoNEScorer",
    "ModifiedPageRankScorer",
    "NormScorer",
    "REAPScorer",
    "RandomScorer",
    "WandaSPScorer",
    "WandaScorer",
    "WeightedPageRankScorer",
]
