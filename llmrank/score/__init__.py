"""Scorers: they compute the importance of every node of a graph.

To write a scorer, override :meth:`BaseScorer.score`, which gets one layer at a time; :meth:`BaseScorer.rank` calls it for
each layer in turn. The PageRank scorers pass a complete graph to ``graphs``, and their ``score`` is one step of that rank.
"""

from llmrank.score.auto import AutoScorer
from llmrank.score.base_scorer import BaseScorer
from llmrank.score.baselines import ActivationScorer, NormScorer, RandomScorer
from llmrank.score.expert_scorers import EANScorer, ExpertScorer, FrequencyScorer, MoNEScorer, REAPScorer
from llmrank.score.forward_backward import ForwardBackwardScorer
from llmrank.score.pagerank import ModifiedPageRankScorer, WeightedPageRankScorer
from llmrank.score.weighted_statistics import FLAPScorer, WandaScorer, WandaSPScorer

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
