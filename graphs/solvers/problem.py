"""What solvers solve, and what a solver is.

A :class:`Problem` is a map F of states whose fixed point is wanted; it knows how far an iterate can be
from it. A :class:`Solver` is frozen knobs and a step. :mod:`graphs.solvers.iteration` runs the loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from scipy import sparse

from graphs.errors import GraphError
from graphs.linalg.blocks import FloatArray
from graphs.linalg.layer_vectors import State
from graphs.linalg.operators import Vector

__all__ = ["LinearProblem", "Problem", "Solver", "SolverStep", "SweptState", "check_linear"]


@dataclass(frozen=True)
class SweptState:
    """What a pass in layer order gives.

    Attributes
    ----------
    state : State
        Of mass 1.
    teleporting : Vector
        The mass that teleports, () or (k,).
    residual : float
        At least the L1 norm of F(state) - state.
    """

    state: State
    teleporting: Vector
    residual: float


class Problem(Protocol):
    """A map of states, its fixed point, and how to tell the distance to it."""

    @property
    def n_layers(self) -> int:
        """Number of layers."""

    @property
    def n_blocks(self) -> int:
        """Block products that one application of F costs, and one pass in layer order."""

    @property
    def dtype(self) -> str:
        """float64 or float32: what the tolerance can be."""

    @property
    def depth(self) -> int | None:
        """Applications of F after which any state has become the fixed point; None if there is no such number."""

    @property
    def acyclic(self) -> bool:
        """Whether one pass in layer order gives the fixed point."""

    @property
    def linear(self) -> bool:
        """Whether it is a :class:`LinearProblem`."""

    def start(self) -> State:
        """A state to begin with."""

    def apply(self, state: State) -> State:
        """F."""

    def sweep(self, state: State, teleporting: Vector) -> SweptState:
        """One pass in layer order, every layer from the newest."""

    def residual(self, changes: Sequence[float]) -> float:
        """The residual of the whole from those of the layers."""

    def error_bounds(self, changes: Sequence[float], steps: int) -> list[float]:
        """L1 error of F(r) in every layer, from the L1 distance of F(r) and r in every layer.

        `steps` tells how many times in a row F was applied, the last one included.
        """

    def row_maxima(self) -> list[FloatArray] | None:
        """max_j P_ij of every node, by layer; None where the map is no P."""

    @property
    def roundoff(self) -> float:
        """Relative error of a score that rounding is allowed."""


class LinearProblem(Problem, Protocol):
    """A problem that is also x = gamma P x + teleporting * v."""

    @property
    def gamma(self) -> float:
        """Damping, below 1."""

    @property
    def teleport(self) -> State:
        """V."""

    def transition(self, state: State) -> State:
        """P."""

    def aggregate(self, state: State, teleporting: Vector) -> State:
        """`state` with the masses of the layers set right."""

    def residual_bounds(self, residual: float) -> list[float]:
        """L1 error in every layer of any r of mass 1 with this L1 norm of F(r) - r."""

    def split(self, stacked: FloatArray) -> State:
        """A state of a stacked array."""

    def stack(self, state: State) -> FloatArray:
        """The stacked float64 array of a state."""

    @property
    def edges(self) -> int:
        """Number of edges of P."""

    def matrix(self) -> sparse.csc_array:
        """P as one matrix."""


@dataclass(frozen=True)
class SolverStep:
    """What one step of a solver gives.

    Attributes
    ----------
    state : State
        The best answer so far, of mass 1.
    changes : list of float
        L1 change of every layer.
    residual : float
        What the tolerance is compared with: at least the L1 norm of F(r) - r of the answer, or of the iterate before it.
    bounds : list of float
        Proven bound on the L1 error of the answer in every layer; inf where none is known.
    products : int
        Block products spent.
    memory : Any
        What the solver's next step needs.
    exact : bool
        Whether the answer is the fixed point up to round-off.
    is_image : bool
        Whether the answer is F of something, and the bounds those of :meth:`Problem.bounds`.
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
    """Frozen knobs and a step."""

    @property
    def name(self) -> str:
        """What the result reports."""

    def begin(self, problem: Any, start: State, tol: float) -> Any:
        """The memory of the first step, or a GraphError if the problem is none for this solver."""

    def step(self, problem: Any, memory: Any) -> SolverStep:
        """One step."""


def check_linear(problem: Problem, solver: str) -> None:
    """Refuse a problem that is not linear.

    Examples
    --------
    >>> from graphs.linalg.backends import make_backend
    >>> from graphs.ranking.layered_problem import WeightedPageRankProblem
    >>> from graphs.structures.layered import LayeredGraph
    >>> graph = LayeredGraph.from_weights([[[1.0, 2.0]]], [1, 3], [[1]])
    >>> problem = WeightedPageRankProblem(graph, make_backend("auto", None, "float64"), products=1, gamma=0.5, theta=1.0)
    >>> check_linear(problem, "lu")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    graphs.errors.GraphError: solver 'lu' needs a linear system, which layered ranks normalise away layer by layer; ...
    """
    if not problem.linear:
        raise GraphError(
            f"solver {solver!r} needs a linear system, which layered ranks normalise away layer by layer; use 'sweep' (exact) "
            "or 'power' there, or graphs.pagerank"
        )
