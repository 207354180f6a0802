"""Solvers behind one protocol: frozen knobs and a step.

============================ ============================= ==========================================
name                         class                         converges
============================ ============================= ==========================================
``power``                    :class:`PowerIteration`       like gamma**k at the least; layered: exact
                                                           after L steps
``sweep``                    :class:`LayerSweep`           exact in one pass; acyclic graphs only
``gauss-seidel``             :class:`GaussSeidel`          by what leads back, layers' masses at once
``aitken``, ``quadratic``    :class:`Extrapolation`        power iteration less one or two slow modes
``anderson``                 :class:`AndersonMixing`       like a Krylov method, on any map
``gmres``, ``bicgstab``      :class:`Krylov`               few steps where few modes are slow
``lu``                       :class:`SparseLU`             the oracle
============================ ============================= ==========================================

Stopped early, the mixing and Krylov methods may return scores a little below zero; their bounds hold all the same.
"""

from graphs.solvers.accelerated import AndersonMixing, Extrapolation
from graphs.solvers.direct import SparseLU
from graphs.solvers.iteration import (
    Solution,
    SolverProgress,
    StoppingCriteria,
    attainable_tolerance,
    check_stopping_criteria,
    solve,
    warn_unconverged,
)
from graphs.solvers.krylov import Krylov
from graphs.solvers.problem import LinearProblem, Problem, Solver, SolverStep, SweptState
from graphs.solvers.registry import SOLVERS, automatic_solver, solver_by_name
from graphs.solvers.stationary import GaussSeidel, LayerSweep, PowerIteration

__all__ = [
    "SOLVERS",
    "AndersonMixing",
    "Extrapolation",
    "GaussSeidel",
    "Krylov",
    "LayerSweep",
    "LinearProblem",
    "PowerIteration",
    "Problem",
    "Solution",
    "Solver",
    "SolverProgress",
    "SolverStep",
    "SparseLU",
    "StoppingCriteria",
    "SweptState",
    "attainable_tolerance",
    "automatic_solver",
    "check_stopping_criteria",
    "solve",
    "solver_by_name",
    "warn_unconverged",
]
