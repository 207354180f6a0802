"""The protocols of problems and solvers.

A :class:`Problem` is the equation r = F(r). A :class:`Solver` holds options and takes single steps;
:mod:`graphs.solvers.iteration` runs the loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from scipy import sparse

from graphs.errors import GraphError
from graphs.linalg.blocks import FloatArray
from graphs.linalg.layer_vectors import DeferredChecks, State
from graphs.linalg.operators import Vector

__all__ = ["LinearProblem", "Problem", "Solver", "SolverStep", "SweptState", "apply_and_read", "check_linear"]


@dataclass(frozen=True)
class SweptState:
    """The outcome of a sweep.

    Attributes
    ----------
    state : State
        Scores of sum 1; in a layered rank, of sum 1 in every layer.
    teleport_mass : Vector
        Sum of the scores that teleport, of shape () or (k,); a layered rank does not use it.
    residual : Vector
        An upper bound on the L1 norm of F(state) - state, of shape (), on the device of the scores.
    """

    state: State
    teleport_mass: Vector
    residual: Vector


class Problem(Protocol):
    """The equation r = F(r) of states r, and bounds on the distance to its solution."""

    @property
    def checks(self) -> DeferredChecks:
        """Checks of numbers on a device that wait until a solver reads numbers, with :meth:`DeferredChecks.read`."""

    @property
    def n_layers(self) -> int:
        """Number of layers."""

    @property
    def n_blocks(self) -> int:
        """Number of block products in one application of F, and in one sweep."""

    @property
    def dtype(self) -> str:
        """float64 or float32; limits the tolerance that can be reached."""

    @property
    def steps_to_exact(self) -> int | None:
        """Number of applications of F that turn any first iterate into the fixed point; None if no such number is known."""

    @property
    def acyclic(self) -> bool:
        """Whether one sweep is known to give the fixed point."""

    @property
    def sweepable(self) -> bool:
        """Whether sweeps are possible."""

    @property
    def linear(self) -> bool:
        """Whether the problem is a :class:`LinearProblem`."""

    @property
    def has_few_nodes(self) -> bool:
        """Whether there is one layer, of so few nodes that a dense factorisation takes less time than iterating."""

    @property
    def sweeps_fast(self) -> bool:
        """Whether there is one layer that a compiled kernel sweeps, so that a sweep takes as long as an application of F."""

    def start(self) -> State:
        """Return the default first iterate."""

    def apply(self, state: State) -> State:
        """Apply F."""

    def apply_and_compare(self, state: State) -> tuple[State, list[Vector]]:
        """Apply F, and compute the L1 change of every layer; if there are several columns, the largest of their changes."""

    def sweep(self, state: State, teleport_mass: Vector) -> SweptState:
        """Compute the layers in order, each from the newest scores of the others.

        `teleport_mass` is the sum of the scores that teleport; if `acyclic`, any positive number will do.
        """

    def residual(self, changes: Sequence[float]) -> float:
        """Combine the L1 changes of the layers into one residual."""

    def error_bounds(self, changes: Sequence[float], steps: int) -> list[float]:
        """Bound the L1 error of F(r) in every layer, from the L1 distance between r and F(r) in every layer.

        `steps` is the number of consecutive applications of F that led to F(r).
        """

    def row_maxima(self) -> list[FloatArray] | None:
        """Bound max_j P_ij of every node i from above, by layer; P is the transition matrix. None if F has no P."""

    @property
    def roundoff(self) -> float:
        """Allowance for the relative rounding error of a score."""


class LinearProblem(Problem, Protocol):
    """A problem whose solution is that of the linear system x = gamma P x + teleport_mass * v, scaled to sum 1."""

    @property
    def gamma(self) -> float:
        """Damping, below 1."""

    @property
    def teleport(self) -> State:
        """The teleport distribution v."""

    def apply_transition(self, state: State) -> State:
        """Apply P."""

    def sweep_and_compare(
        self, state: State, teleport_mass: Vector, *, aggregates: bool, sorts_nodes: bool = True
    ) -> tuple[SweptState, list[Vector]]:
        """Sweep, and compute the L1 change of every layer; `sorts_nodes` as in :class:`graphs.solvers.ExtrapolatedSweeps`.

        If `aggregates`, scale the layers first, so that their sums solve the equation of a graph with one node for each layer.
        """

    def residual_bounds(self, residual: float) -> list[float]:
        """Bound the L1 error in every layer of any r of sum 1, from the L1 norm of F(r) - r."""

    def split(self, stacked: FloatArray) -> State:
        """Split an array over all nodes into a state."""

    def stack(self, state: State) -> FloatArray:
        """Join a state into one float64 array over all nodes."""

    @property
    def n_edges(self) -> int:
        """Number of edges."""

    def matrix(self) -> sparse.csr_array:
        """Build P as one matrix."""


@dataclass(frozen=True)
class SolverStep:
    """The outcome of one step of a solver.

    Attributes
    ----------
    state : State
        The iterate after this step, of sum 1; in a layered rank, of sum 1 in every layer.
    changes : list of float
        L1 distance, in every layer, from `state` to the iterate that F was applied to; for Gauss-Seidel, to the iterate before
        this step; zeros for a layer sweep.
    residual : float
        Upper bound on F(r) - r in the norm of :meth:`Problem.residual`, where r is `state` or the iterate that F was applied to.
    bounds : list of float
        Proven bound on the L1 error of `state` in every layer, up to round-off; inf where none is known.
    products : int
        Number of block products in this step.
    memory : Any
        Passed to the solver's next step.
    exact : bool
        Whether `state` is known to be the fixed point, up to round-off.
    is_image : bool
        Whether `state` is F of another state, and the bounds are those of :meth:`Problem.error_bounds`.
    """

    state: State
    changes: list[float]
    residual: float
    bounds: list[float]
    products: int
    memory: Any
    exact: bool = False
    is_image: bool = True


class Solver(Protocol):
    """A method that finds the fixed point, step by step."""

    @property
    def name(self) -> str:
        """Name of the solver in the result."""

    def begin(self, problem: Any, start: State, tol: float) -> Any:
        """Return the memory of the first step, or raise a GraphError if the solver is not for this problem."""

    def step(self, problem: Any, memory: Any) -> SolverStep:
        """Take one step."""


def apply_and_read(problem: Problem, state: State) -> tuple[State, list[float]]:
    """Apply F, read the L1 change of every layer, and make the waiting checks of the problem.

    If the state is not on the CPU, the changes and the numbers to check come in one copy.

    Raises
    ------
    GraphError
        A check fails.

    Examples
    --------
    >>> from graphs.linalg.backends import make_backend
    >>> from graphs.ranking.layered_problem import WeightedPageRankProblem
    >>> from graphs.structures.layered import LayeredGraph
    >>> graph = LayeredGraph.from_weights([[[1.0], [0.0]]], [1.0], [[1.0, 1.0]])
    >>> problem = WeightedPageRankProblem(graph, make_backend("auto", None, "float64"), products=1, gamma=0.5, theta=1.0)
    >>> apply_and_read(problem, problem.start())
    ([array([1.]), array([0.75, 0.25])], [0.0, 0.5])
    """
    image, norms = problem.apply_and_compare(state)
    return image, [float(norm) for norm in problem.checks.read(norms)]


def check_linear(problem: Problem, solver: str) -> None:
    """Raise a GraphError if a problem is not linear.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> check_linear(SimpleNamespace(linear=False), "lu")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    graphs.errors.GraphError: solver 'lu' expects a linear system, got a layered rank, which normalises every layer; use ...
    """
    if not problem.linear:
        raise GraphError(
            f"solver {solver!r} expects a linear system, got a layered rank, which normalises every layer; use solver='sweep' "
            "(exact) or 'power', or rank the graph with graphs.pagerank"
        )
