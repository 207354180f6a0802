"""Mixtures of experts: they are found by their tensors or modules, and each expert is described as an FFN of its own."""

from llmrank.models.experts.expert_map import (
    Expert,
    ExpertMap,
    Routing,
    TensorPart,
    set_forward,
    substitute_forward,
)
from llmrank.models.experts.find_mixtures import counts_of_experts, find_mixtures, find_separate_mixtures
from llmrank.models.experts.mixture import Mixture, RouteAround, RoutedExperts, by_expert, route_around
from llmrank.models.experts.separate import SeparateExperts

__all__ = [
    "Expert",
    "ExpertMap",
    "Mixture",
    "RouteAround",
    "RoutedExperts",
    "Routing",
    "SeparateExperts",
    "TensorPart",
    "by_expert",
    "counts_of_experts",
    "find_mixtures",
    "find_separate_mixtures",
    "route_around",
    "set_forward",
    "substitute_forward",
]
