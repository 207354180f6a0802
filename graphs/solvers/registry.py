"""Solvers by name, and the rule behind ``solver="auto"``."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from graphs.errors import GraphError
from graphs.solvers.accelerated import ExtrapolatedSweeps, Extrapolation
from graphs.solvers.direct import SparseLU
from graphs.solvers.problem import Problem, Solver
from graphs.solvers.stationary import GaussSeidel, LayerSweep

__all__ = ["SOLVERS", "automatic_solver", "solver_by_name"]

# All mappings NAMES of the modules of this folder together. A module that is added to the folder needs no change here.
SOLVERS: Mapping[str, Callable[[], Solver]] = {
    name: make
    for info in pkgutil.iter_modules([str(Path(__file__).parent)])
    if info.name != __name__.rpartition(".")[2]
    for name, make in getattr(importlib.import_module(f"graphs.solvers.{info.name}"), "NAMES", {}).items()
}


def solver_by_name(solver: Any) -> Solver | None:
    """Make the solver of a name, or return a given solver object; "auto" gives None.

    Raises
    ------
    GraphError
        The name is unknown, or the object is no solver.

    Examples
    --------
    >>> solver_by_name("gauss-seidel").name, solver_by_name("auto")
    ('gauss-seidel', None)
    """
    if isinstance(solver, str):
        if solver == "auto":
            return None
        if solver in SOLVERS:
            return SOLVERS[solver]()
    elif not isinstance(solver, type) and all(hasattr(solver, attribute) for attribute in ("name", "begin", "step")):
        return solver  # type: ignore[no-any-return]
    raise GraphError(f"unknown solver {solver!r}; expected 'auto', {', '.join(map(repr, SOLVERS))}, or a Solver object")


def automatic_solver(problem: Problem) -> tuple[Solver, str]:
    """Choose the solver for a problem, and say why.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> automatic_solver(SimpleNamespace(acyclic=True))
    (LayerSweep(name='sweep'), 'no edge leads back, so one pass in layer order is exact')
    """
    if problem.acyclic:
        return LayerSweep(), "no edge leads back, so one pass in layer order is exact"
    if problem.has_few_nodes:
        return SparseLU(), "there are few nodes: a dense factorisation"
    if not problem.sweepable:
        reason = "sweeps need the edges within each layer in one scipy CSR block that is not transposed"
    elif problem.sweeps_fast:
        return (
            ExtrapolatedSweeps(sorts_nodes=False),
            "edges lead back, and there is only one layer, of many edges: Gauss-Seidel sweeps with quadratic extrapolation",
        )
    elif problem.n_layers == 1:
        reason = "edges lead back and there is only one layer"
    else:
        return (
            GaussSeidel(),
            "edges lead back and there are several layers: sweeps in layer order, with aggregation by layer",
        )
    return Extrapolation(degree=2), f"{reason}: power iteration with quadratic extrapolation"
