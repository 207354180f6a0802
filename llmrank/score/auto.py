"""A choice of scorers, of which a pipeline takes the one that suits the model."""

from __future__ import annotations

from typing import Any, ClassVar

from llmrank.errors import OptionError
from llmrank.score.base_scorer import BaseScorer
from llmrank.score.baselines import ActivationScorer
from llmrank.score.pagerank import WeightedPageRankScorer, default_scorer
from llmrank.score.weighted_statistics import WandaSPScorer

__all__ = ["AutoScorer", "default_candidates"]


class AutoScorer(BaseScorer):
    """Several scorers, of which a pipeline takes one: each is tried by a cut.

    How it is chosen is told at :mod:`llmrank.pipeline.closeness.candidates`.

    Parameters
    ----------
    *candidates : BaseScorer
        The first one is taken that is not behind the closest by more than a standard error. By default those of
        :func:`default_candidates`.

    Raises
    ------
    OptionError
        A candidate is no scorer, or is a choice itself; or two are the same.

    Examples
    --------
    >>> AutoScorer(ActivationScorer(), WandaSPScorer(p=2.0)).parameters()
    {'candidates': ['activation', 'wanda-sp:p=2.0']}
    """

    name: ClassVar[str] = "auto"

    def __init__(self, *candidates: BaseScorer) -> None:
        self.candidates = candidates or default_candidates()
        for each in self.candidates:
            if not isinstance(each, BaseScorer) or isinstance(each, AutoScorer):
                got = "auto, which is a choice itself; leave it out" if isinstance(each, AutoScorer) else repr(each)
                raise OptionError(f"expected scorers such as wpr to choose from, got {got}")
        labels = [each.label() for each in self.candidates]
        if len(set(labels)) < len(labels):
            raise OptionError(f"expected different scorers to choose from, got {', '.join(labels)}")

    def rank(self, graph: Any, statistics: Any) -> Any:
        """Refuse: only a pipeline can choose a scorer."""
        raise OptionError(
            "a choice of scorers needs a model that the cuts are tried on; run a pipeline (llmrank.prune_model), or rank by one "
            f"of {', '.join(each.label() for each in self.candidates)}"
        )

    def parameters(self) -> dict[str, Any]:
        """Return the candidates, as specs."""
        return {"candidates": [each.label() for each in self.candidates]}

    def label(self) -> str:
        """Return the candidates as a spec."""
        labels = tuple(each.label() for each in self.candidates)
        return self.name if labels == tuple(each.label() for each in default_candidates()) else ",".join(labels)


def default_candidates() -> tuple[BaseScorer, ...]:
    """Return the scorers that are tried if none are named."""
    return (
        default_scorer(),
        WeightedPageRankScorer(gamma=0.35, edges="gate"),
        WeightedPageRankScorer(gamma=0.35, edges="energy"),
        WandaSPScorer(),
        ActivationScorer(),
    )
