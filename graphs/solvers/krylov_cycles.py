"""Cycles of GMRES and BiCGSTAB on a device such as a GPU. No number is copied to the CPU, so the program never waits for a copy.

For that reason, a cycle does not ask whether it has converged: it takes a fixed number of iterations. A column that has converged
no longer changes in the rest of its cycle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import torch

__all__ = ["CYCLES", "bicgstab_cycle", "gmres_cycle"]

Product: TypeAlias = "Callable[[torch.Tensor], torch.Tensor]"
Cycle: TypeAlias = "Callable[[Product, torch.Tensor, torch.Tensor, int, float], torch.Tensor]"

# The product of A with a new direction is made orthogonal to the earlier products. If less than this share of its norm remains,
# the remainder is round-off, and the direction is not used.
SMALLEST_NEW_PART = 1e-8


def gmres_cycle(multiply: Product, x: torch.Tensor, right: torch.Tensor, inner: int, threshold: float) -> torch.Tensor:
    """Take `inner` iterations of GMRES on A x = right, independently for each column; A is `multiply`.

    x changes along directions. A new direction is the residual, minus parts of the earlier directions and scaled, so that the
    products of A with all directions are orthonormal (GCR: Eisenstat, Elman and Schultz, SIAM J. Numer. Anal. 20, 1983). In exact
    arithmetic, the iterates are those of GMRES. The exception is a residual that does not fall at all in an iteration: then x
    does not change in the rest of the cycle.

    Parameters
    ----------
    multiply : callable
        Multiplies tensors of the shape of `x` by A.
    x, right : (n,) or (n, k) float64 tensors
        First iterate, and right side.
    inner : int
        Number of iterations; two tensors are stored for each.
    threshold : float
        2-norm of the residual at which a column no longer changes.

    Returns
    -------
    tensor like `x`
        Cost: inner + 1 products and about ``3 * inner**2`` sums and inner products.

    Examples
    --------
    >>> import torch
    >>> diagonal = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    >>> gmres_cycle(lambda v: diagonal * v, torch.zeros_like(diagonal), diagonal.new_ones(3), 3, 0.0).round(decimals=9)
    tensor([1.0000, 0.5000, 0.2500], dtype=torch.float64)
    """
    residual = right - multiply(x)
    directions: list[tuple[torch.Tensor, torch.Tensor]] = []
    for _ in range(inner):
        direction, product = residual, multiply(residual)
        before = _dot(product, product).sqrt()
        for earlier, earlier_product in directions:
            share = _dot(product, earlier_product)
            direction, product = direction - share * earlier, product - share * earlier_product
        norm = _dot(product, product).sqrt()
        scale = _ratio(norm > SMALLEST_NEW_PART * before, norm.new_ones(()), norm)
        direction, product = direction * scale, product * scale
        directions.append((direction, product))
        active = _dot(residual, residual).sqrt() > threshold
        step = _dot(residual, product) * active
        x, residual = x + step * direction, residual - step * product
    return x


def bicgstab_cycle(
    multiply: Product, x: torch.Tensor, right: torch.Tensor, inner: int, threshold: float
) -> torch.Tensor:
    """Take `inner` iterations of BiCGSTAB on A x = right, independently for each column; A is `multiply`.

    Source: van der Vorst, SIAM J. Sci. Stat. Comput. 13 (1992).

    Parameters
    ----------
    multiply, x, right, inner, threshold
        As for :func:`gmres_cycle`; no tensor is stored for an iteration.

    Returns
    -------
    tensor like `x`
        Cost: 2 inner + 1 products.

    Examples
    --------
    >>> import torch
    >>> diagonal = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    >>> bicgstab_cycle(lambda v: diagonal * v, torch.zeros_like(diagonal), diagonal.new_ones(3), 3, 0.0).round(decimals=9)
    tensor([1.0000, 0.5000, 0.2500], dtype=torch.float64)
    """
    residual = right - multiply(x)
    shadow = residual
    direction = product = x * 0.0
    rho = alpha = omega = _dot(direction, direction) + 1.0
    for _ in range(inner):
        active = _dot(residual, residual).sqrt() > threshold
        rho_before, rho = rho, _dot(shadow, residual)
        beta = _ratio(active, rho, rho_before) * _ratio(active, alpha, omega)
        direction = residual + beta * (direction - omega * product)
        product = multiply(direction)
        alpha = _ratio(active, rho, _dot(shadow, product))
        middle = residual - alpha * product
        image = multiply(middle)
        omega = _ratio(active, _dot(image, middle), _dot(image, image))
        x = x + alpha * direction + omega * middle
        residual = middle - omega * image
    return x


CYCLES: dict[str, Cycle] = {"gmres": gmres_cycle, "bicgstab": bicgstab_cycle}


def _dot(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return (first * second).sum(0)


def _ratio(condition: torch.Tensor, numerator: torch.Tensor, denominator: torch.Tensor) -> torch.Tensor:
    """Divide where the condition holds and the denominator is not zero; give 0 elsewhere."""
    possible = condition & (denominator != 0)
    return (numerator / denominator).where(possible, denominator.new_zeros(()))
