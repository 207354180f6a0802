"""Registries: names of the command line -> classes. Third parties can add theirs.

>>> from llmrank.score import BaseScorer
>>> @SCORERS.register("in-strength")
... class InStrength(BaseScorer):
...     def score(self, prev_importance, in_activations, out_activations, weight):
...         return weight.sum(dim=1)
>>> type(make_scorer("in-strength")).__name__
'InStrength'
>>> del SCORERS["in-strength"]
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from llmrank.errors import OptionError
from llmrank.pipeline.base_pipeline import BasePipeline
from llmrank.pipeline.topologies import ChainedFFNPipeline, IsolatedFFNPipeline, ResidualFFNPipeline
from llmrank.prune import BasePruner, GlobalPruner, LocalPruner, SensitivityPruner
from llmrank.score import (
    ActivationScorer,
    BaseScorer,
    ExplainedScorer,
    FLAPScorer,
    ForwardBackwardScorer,
    ModifiedPageRankScorer,
    NormScorer,
    RandomScorer,
    WandaScorer,
    WandaSPScorer,
    WeightedPageRankScorer,
)
from llmrank.surgery.repair import BaseRepair, BiasRepair, LeastSquaresRepair

__all__ = [
    "DEFAULTS",
    "PIPELINES",
    "PRUNERS",
    "REPAIRS",
    "SCORERS",
    "Registry",
    "make_pruner",
    "make_repair",
    "make_scorer",
]

T = TypeVar("T")


class Registry(dict[str, type[T]], Generic[T]):
    """Names of one kind of class.

    Parameters
    ----------
    kind : str
        How messages call an entry.
    base : type
        What entries must inherit from.
    """

    def __init__(self, kind: str, base: type[T], entries: dict[str, type[T]]) -> None:
        super().__init__(entries)
        self.kind = kind
        self.base = base

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Class decorator that adds an entry.

        Raises
        ------
        OptionError
            The name is taken, or the class does not inherit from the base.
        """

        def add(entry: type[T]) -> type[T]:
            if name in self or not issubclass(entry, self.base):
                raise OptionError(
                    f"cannot register {entry.__name__} as {self.kind} {name!r}: the name must be free and the class a "
                    f"{self.base.__name__}"
                )
            self[name] = entry
            return entry

        return add

    def find(self, name: str) -> type[T]:
        """The class of a name, or an OptionError that lists the names."""
        if name not in self:
            raise OptionError(f"unknown {self.kind} {name!r}; expected one of {', '.join(sorted(self))}")
        return self[name]

    def make(self, name: str, **options: Any) -> T:
        """An instance; options that are None are left to the class.

        Raises
        ------
        OptionError
            Unknown name, or an option that the class does not take.
        """
        entry = self.find(name)
        given = {key: value for key, value in options.items() if value is not None}
        accepted = inspect.signature(entry).parameters
        foreign = [key for key in given if key not in accepted]
        if foreign:
            takes = ", ".join(accepted) or "no options"
            raise OptionError(f"{self.kind} {name!r} does not take {', '.join(foreign)}; it takes {takes}")
        return entry(**given)


SCORERS: Registry[BaseScorer] = Registry(
    "scorer",
    BaseScorer,
    {
        "wpr": WeightedPageRankScorer,
        "mpr": ModifiedPageRankScorer,
        "fbpr": ForwardBackwardScorer,
        "norm": NormScorer,
        "activation": ActivationScorer,
        "random": RandomScorer,
        "wanda": WandaScorer,
        "wanda-sp": WandaSPScorer,
        "flap": FLAPScorer,
        "explained": ExplainedScorer,
    },
)
PRUNERS: Registry[BasePruner] = Registry(
    "pruner", BasePruner, {"local": LocalPruner, "global": GlobalPruner, "sensitivity": SensitivityPruner}
)
PIPELINES: Registry[BasePipeline] = Registry(
    "pipeline",
    BasePipeline,
    {"isolated": IsolatedFFNPipeline, "chained": ChainedFFNPipeline, "residual": ResidualFFNPipeline},
)
REPAIRS: Registry[BaseRepair] = Registry("repair", BaseRepair, {"bias": BiasRepair, "lstsq": LeastSquaresRepair})
# What `llmrank prune` does when nothing is said: what measured best on held-out text among the graph
# ranks whose checkpoints stock transformers loads (benchmarks/results/quality.md, benchmarks/LOG.md), repaired
# in a way, and calibrated on a text, that hold on text of another kind too (benchmarks/results/out_of_domain.md).
DEFAULTS: dict[str, Any] = {
    "scorer": "wpr",
    "pruner": "local",
    "pipeline": "isolated",
    "repair": "lstsq",
    "reselect": False,
    "calibration": "auto",
}


def make_scorer(name: str, **options: Any) -> BaseScorer:
    """A scorer by name; see :meth:`Registry.make`."""
    return SCORERS.make(name, **options)


def make_pruner(name: str, **options: Any) -> BasePruner:
    """A pruner by name; see :meth:`Registry.make`."""
    return PRUNERS.make(name, **options)


def make_repair(name: str, **options: Any) -> BaseRepair | None:
    """A repair by name, None for "none"; see :meth:`Registry.make`."""
    if name != "none":
        return REPAIRS.make(name, **options)
    given = [key for key, value in options.items() if value is not None]
    if given:
        raise OptionError(
            f"repair 'none' does not take {', '.join(given)}; leave it out, or choose {', '.join(REPAIRS)}"
        )
    return None
