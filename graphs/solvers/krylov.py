"""Krylov methods for the linear system (I - gamma P) x = v: those of scipy on the CPU, our own on other devices."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.sparse import linalg

from graphs.errors import GraphError
from graphs.linalg.blocks import FloatArray
from graphs.linalg.layer_vectors import State, is_on_cpu
from graphs.linalg.operators import Vector
from graphs.solvers.krylov_cycles import CYCLES
from graphs.solvers.problem import LinearProblem, Solver, SolverStep, apply_and_read, check_linear

__all__ = ["NAMES", "Krylov"]


@dataclass(frozen=True)
class Krylov:
    """GMRES or BiCGSTAB on (I - gamma P) x = v; the rank is the solution divided by its sum.

    P is the transition matrix, v the teleport distribution, and gamma the damping.

    A step is a cycle of at most `inner` iterations for each column of v, and then one application of F, the right side of the
    equation r = F(r) of the rank, which gives the residual and the bound. The vectors of a cycle are float64, whatever the dtype
    of the operators.

    On the CPU, scipy takes the cycles, one column after the other. On another device, :mod:`graphs.solvers.krylov_cycles` takes
    `inner` iterations for all columns at once; only the changes of the layers in a step are copied to the CPU.

    Parameters
    ----------
    method : {"gmres", "bicgstab"}
    inner : int
        Largest number of iterations in a cycle. scipy's GMRES stores ``inner + 1`` vectors.
    """

    method: Literal["gmres", "bicgstab"] = "gmres"
    inner: int = 10

    def __post_init__(self) -> None:
        if self.method not in ("gmres", "bicgstab") or self.inner < 1:
            raise GraphError(
                f"expected method 'gmres' or 'bicgstab' and inner >= 1, got {self.method!r} and {self.inner!r}"
            )

    @property
    def name(self) -> str:
        """Name of the solver: the method."""
        return self.method

    def begin(self, problem: LinearProblem, start: State, tol: float) -> Any:
        """Return the memory of the first step: the start, `tol`, and no last iterate.

        The start is scaled to sum 1 / (1 - gamma), the sum of the solution if the graph has no dangling nodes.
        """
        check_linear(problem, self.name)
        return _stack(problem, start) / (1.0 - problem.gamma), tol, None

    def step(self, problem: LinearProblem, memory: Any) -> SolverStep:
        """Take one cycle for every column, and apply F once; twice if the cycles increased the residual."""
        x, tol, last = memory  # last: image, residual and scale of the step before
        solution, products = (self._scipy_cycles if is_on_cpu(x) else self._device_cycle)(problem, x, tol)
        solution = solution.clip(0.0)  # a method that stops early can leave scores below zero
        scale = solution.sum(0)
        state = _split(problem, solution / scale)
        image, changes = apply_and_read(problem, state)
        if last is not None and not problem.residual(changes) <= last[1]:
            # An application of F cannot increase the residual, so F is applied to the last iterate instead.
            state, _, scale = last
            image, changes = apply_and_read(problem, state)
            products += 1
        residual = problem.residual(changes)
        return SolverStep(
            image,
            changes,
            residual,
            problem.error_bounds(changes, 1),
            (products + 1) * problem.n_blocks,
            (_stack(problem, image) * scale, tol, (image, residual, scale)),
        )

    def _scipy_cycles(self, problem: LinearProblem, x: FloatArray, tol: float) -> tuple[FloatArray, int]:
        """Return x after one cycle on every column, and the number of products."""
        right = problem.stack(problem.teleport)
        products = 0
        solution = np.empty_like(x)
        for column in range(1 if x.ndim == 1 else x.shape[1]):
            at = (slice(None),) if x.ndim == 1 else (slice(None), column)
            solution[at], cycle_products = self._scipy_cycle(problem, x[at], right[at], tol)
            products += cycle_products
        return solution, products

    def _device_cycle(self, problem: LinearProblem, x: Vector, tol: float) -> tuple[Vector, int]:
        """Return x after one cycle on all columns, and the number of products.

        A column of the result that cannot be scaled to sum 1 is replaced by that of x.
        """
        products = 0

        def multiply(vector: Vector) -> Vector:
            nonlocal products
            products += 1
            return vector - problem.gamma * _stack(problem, problem.apply_transition(_split(problem, vector)))

        # The threshold is a 2-norm; the 1-norm is up to sqrt(n) times as large.
        threshold = 0.1 * tol / math.sqrt(len(x))
        solution = CYCLES[self.method](multiply, x, _stack(problem, problem.teleport), self.inner, threshold)
        usable = solution.isfinite().all(0) & (solution.sum(0) > 0)
        return solution.where(usable, x), products

    def _scipy_cycle(
        self, problem: LinearProblem, x: FloatArray, right: FloatArray, tol: float
    ) -> tuple[FloatArray, int]:
        """Return one column x after a cycle, and the number of products; x itself if the result cannot be scaled to sum 1."""
        products = 0

        def multiply(vector: FloatArray) -> FloatArray:
            nonlocal products
            products += 1
            column = vector.ravel()
            return column - problem.gamma * problem.stack(problem.apply_transition(problem.split(column)))

        n_nodes = len(x)
        system = linalg.LinearOperator((n_nodes, n_nodes), matvec=multiply, dtype=np.float64)
        # scipy compares the 2-norm of a residual; the 1-norm is up to sqrt(n) times as large.
        options: dict[str, Any] = {"x0": x, "rtol": 0.0, "atol": 0.1 * tol / np.sqrt(n_nodes)}
        if self.method == "gmres":
            solution, _ = linalg.gmres(system, right, restart=self.inner, maxiter=1, **options)
        else:
            solution, _ = linalg.bicgstab(system, right, maxiter=self.inner, **options)
        return (solution if np.isfinite(solution).all() and solution.sum() > 0 else x), products


def _stack(problem: LinearProblem, state: State) -> Vector:
    """Join a state into one float64 vector over all nodes: a numpy array for a state on the CPU, else a tensor on its device."""
    if is_on_cpu(state[0]):
        return problem.stack(state)
    return sys.modules["torch"].cat(state).double()


def _split(problem: LinearProblem, stacked: Vector) -> State:
    """Split a vector over all nodes, as :func:`_stack` returns it, into a state."""
    if is_on_cpu(stacked):
        return problem.split(stacked)
    dtype = problem.teleport[0].dtype
    return list(stacked.to(dtype).split([len(vector) for vector in problem.teleport]))


NAMES: Mapping[str, Callable[[], Solver]] = {"gmres": lambda: Krylov("gmres"), "bicgstab": lambda: Krylov("bicgstab")}
