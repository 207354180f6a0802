"""Mixtures of experts: each expert as an FFN of its own, found in the tensors that all experts of a mixture share."""

from llmrank.models.experts.expert_map import Expert, ExpertMap, Routing, TensorPart
from llmrank.models.experts.find_mixtures import find_mixtures
from llmrank.models.experts.mixture import Mixture, RouteAround, RoutedExperts, by_expert, route_around

__all__ = [
    "Expert",
    "ExpertMap",
    "Mixture",
    "RouteAround",
    "RoutedExperts",
    "Routing",
    "TensorPart",
    "by_expert",
    "find_mixtures",
    "route_around",
]
