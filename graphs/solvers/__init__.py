"""Solvers of fixed-point problems r = F(r), all with one protocol.

========================== =========================== =========================================================================
name                       class                       convergence
========================== =========================== =========================================================================
``power``                  :class:`PowerIteration`     error falls at least like gamma**k; layered ranks are exact after L steps
``sweep``                  :class:`LayerSweep`         exact after one sweep; for acyclic graphs only
``gauss-seidel``           :class:`GaussSeidel`        fast where few edges lead back to earlier layers
``gauss-seidel-quadratic`` :class:`ExtrapolatedSweeps` fewer steps than ``quadratic``; not on torch
``aitken``, ``quadratic``  :class:`Extrapolation`      power iteration without its one or two slowest modes
``anderson``               :class:`AndersonMixing`     like a Krylov method, also for equations that are not linear
``gmres``, ``bicgstab``    :class:`Krylov`             few steps where few modes are slow
``lu``                     :class:`SparseLU`           direct; for few nodes, and for checks
========================== =========================== =========================================================================

gamma is the damping, k the number of steps, and L the number of blocks of a layered graph. A mode is a part of the error that
every step of power iteration multiplies by one factor; a mode is slow if this factor is near 1.

Scores are never below zero: mixtures and the results of Krylov methods and of LU are cut off at zero before F is applied to them.
"""

from graphs.solvers.accelerated import AndersonMixing, ExtrapolatedSweeps, Extrapolation
from graphs.solvers.direct import SparseLU
from graphs.solvers.iteration import (
    Solution,
    SolverProgress,
    StoppingCriteria,
    attainable_tolerance,
    check_stopping_criteria,
    solve,
)
from graphs.solvers.krylov import Krylov
from graphs.solvers.problem import LinearProblem, Problem, Solver, SolverStep, SweptState
from graphs.solvers.registry import SOLVERS, automatic_solver, solver_by_name
from graphs.solvers.stationary import GaussSeidel, LayerSweep, PowerIteration

__all__ = [
    "SOLVERS",
    "AndersonMixing",
    "ExtrapolatedSweeps",
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
]
