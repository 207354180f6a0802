"""The experts of a mixture: how much each is used, its score, and what pruning would leave of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from llmrank.errors import OptionError
from llmrank.inspection.inspect_model import Inspection

__all__ = ["ExpertSummary", "summarise_experts"]


@dataclass(frozen=True)
class ExpertSummary:
    """A summary of one expert.

    Attributes
    ----------
    name : str
        Name of its prunable layer.
    n_neurons : int
    routed : bool
        Whether a router chooses the tokens of the expert. If not, it is a shared expert, which gets all tokens.
    tokens : float
        Share of the calibration tokens that the expert gets, 0..1.
    weight : float
        Mean of the expert's routing weight over all calibration tokens, where a token that it does not get counts as 0. 1 for a
        shared expert.
    score : float
        Sum of the scores of the expert's neurons. The scores of all experts of a mixture, shared ones included, sum to 1.
    kept : mapping from str to int
        Number of neurons that each budget keeps; 0 if it removes the expert. A budget that refuses the amount has no entry.
    """

    name: str
    n_neurons: int
    routed: bool
    tokens: float
    weight: float
    score: float
    kept: Mapping[str, int]

    @property
    def is_dead(self) -> bool:
        """Whether the expert gets no calibration token."""
        return self.tokens == 0.0

    def label(self, mixture: str) -> str:
        """Return the expert's name without the name of its mixture; for a shared expert, the last part of its name."""
        return self.name.removeprefix(f"{mixture}.") if self.routed else self.name.rpartition(".")[2]

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain Python values, as JSON needs them."""
        return {**asdict(self), "dead": self.is_dead}


def summarise_experts(inspection: Inspection, name: str) -> tuple[ExpertSummary, ...]:
    """Summarise the experts of a mixture, shared ones included, in the order of its neurons.

    Parameters
    ----------
    inspection : Inspection
    name : str
        Name of a mixture among the layers of the inspection.

    Raises
    ------
    OptionError
        There is no such layer, or it is no mixture.
    """
    layer = inspection.layer(name)
    if not layer.is_mixture:
        raise OptionError(f"{name} is no mixture of experts")
    statistics = inspection.graphs[layer.graph].statistics
    # All tokens of the mixture pass the layer in front of its experts.
    n_tokens = max(statistics[layer.position - 1].count, 1)
    found = []
    for part, (size, routing) in zip(layer.parts, statistics[layer.position].experts, strict=True):
        expert = part.layer.name
        found.append(
            ExpertSummary(
                name=expert,
                n_neurons=size,
                routed=routing is not None,
                tokens=1.0 if routing is None else routing.count / n_tokens,
                weight=1.0 if routing is None else routing.weight / n_tokens,
                score=float(inspection.main.importance[name][part.nodes].sum()),
                kept={budget: int(masks[expert].sum()) for budget, masks in inspection.main.masks.items()},
            )
        )
    return tuple(found)
