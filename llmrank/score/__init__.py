"""Scorers: the importance of every node of a graph.

A scorer of your own overrides :meth:`BaseScorer.score`, which sees one layer at a time; the walk over
the layers is done for it. The PageRank scorers hand the whole graph to ``graphs`` and share the step
with their ``score``.
"""

from llmrank.score.base_scorer import BaseScorer
from llmrank.score.baselines import ActivationScorer, NormScorer, RandomScorer, WandaScorer
from llmrank.score.contribution import ExplainedScorer
from llmrank.score.flap import FLAPScorer, WandaSPScorer
from llmrank.score.forward_backward import ForwardBackwardScorer
from llmrank.score.pagerank import ModifiedPageRankScorer, WeightedPageRankScorer

__all__ = [
    "ActivationScorer",
    "BaseScorer",
    "ExplainedScorer",
    "FLAPScorer",
    "ForwardBackwardScorer",
    "ModifiedPageRankScorer",
    "NormScorer",
    "RandomScorer",
    "WandaSPScorer",
    "WandaScorer",
    "WeightedPageRankScorer",
]
