"""The formulas as loops over Python numbers: slow, simple, and independent of the package."""

from __future__ import annotations

import math
from collections.abc import Sequence

Vector = Sequence[float]
Matrix = Sequence[Sequence[float]]


def share(vector: Vector) -> list[float]:
    total = sum(vector)
    return [value / total for value in vector] if total > 0 else [1 / len(vector)] * len(vector)


def norm(weight: Matrix, p: float) -> list[float]:
    if math.isinf(p):
        return [max(abs(w) for w in row) for row in weight]
    return [sum(abs(w) ** p for w in row) ** (1 / p) for row in weight]


def wanda(weight: Matrix, read: Vector) -> list[float]:
    return [sum(abs(w) * a for w, a in zip(row, read, strict=True)) for row in weight]


def wanda_sp(down: Matrix, activation: Vector, p: float = 1.0) -> list[float]:
    columns = [[row[j] for row in down] for j in range(len(activation))]
    return [a * c for a, c in zip(activation, norm(columns, p), strict=True)]


def flap(down: Matrix, variance: Vector) -> list[float]:
    return [variance[j] * sum(row[j] ** 2 for row in down) for j in range(len(variance))]


def weighted(weight: Matrix, previous: Vector, activation: Vector, gamma: float, theta: float) -> list[float]:
    n_out, n_in = len(weight), len(previous)
    passed = [0.0] * n_out
    for j in range(n_in):
        strength = sum(abs(weight[i][j]) for i in range(n_out))
        degree = sum(weight[i][j] != 0 for i in range(n_out))
        for i in range(n_out):
            if weight[i][j]:
                passed[i] += (theta * abs(weight[i][j]) / strength + (1 - theta) / degree) * previous[j]
    mixed = [gamma * p + (1 - gamma) * a for p, a in zip(passed, share(activation), strict=True)]
    return share(mixed) if sum(mixed) > 0 else share(activation)


def modified(weight: Matrix, previous: Vector, activation: Vector, zero_lowest: float = 0.0) -> list[float]:
    order = sorted(range(len(previous)), key=lambda k: (previous[k], k))
    silent = set(order[: int(zero_lowest * len(previous))])
    passed = [sum(abs(w) * previous[k] for k, w in enumerate(row) if k not in silent) for row in weight]
    product = [p * a for p, a in zip(passed, activation, strict=True)]
    return share(product) if sum(product) > 0 else share(activation)


def backward(weight: Matrix, following: Vector, activation: Vector, gamma: float, theta: float) -> list[float]:
    """Compute one step against the edges: every target divides its score among its sources."""
    passed = [0.0] * len(activation)
    for row, score in zip(weight, following, strict=True):
        strength, degree = sum(map(abs, row)), sum(w != 0 for w in row)
        for j, w in enumerate(row):
            if w:
                passed[j] += (theta * abs(w) / strength + (1 - theta) / degree) * score
    mixed = [gamma * p + (1 - gamma) * a for p, a in zip(passed, share(activation), strict=True)]
    return share(mixed) if sum(mixed) > 0 else share(activation)


def least_squares(
    x: Matrix, weight: Matrix, bias: Vector | None, keep: Sequence[bool], damping: float
) -> tuple[list[list[float]], list[float] | None]:
    """Compute the weights and bias of the kept neurons that best fit the old outputs, by Gaussian elimination."""
    tokens, n = len(x), len(keep)
    mean = [sum(row[j] for row in x) / tokens if bias is not None else 0.0 for j in range(n)]
    second = [[sum((row[i] - mean[i]) * (row[j] - mean[j]) for row in x) / tokens for j in range(n)] for i in range(n)]
    kept, removed = [j for j in range(n) if keep[j]], [j for j in range(n) if not keep[j]]
    new: list[list[float]] = []
    for row in weight:
        right = [sum(second[k][r] * row[r] for r in removed) for k in kept]
        left = [[second[k][m] * (1.0 + damping if k == m else 1.0) for m in kept] for k in kept]
        change = dict(zip(kept, eliminate(left, right), strict=True))
        new.append([row[j] + change[j] if keep[j] else 0.0 for j in range(n)])
    if bias is None:
        return new, None
    moved = [
        b + sum((old[j] - now[j]) * mean[j] for j in range(n)) for b, old, now in zip(bias, weight, new, strict=True)
    ]
    return new, moved


def eliminate(left: list[list[float]], right: list[float]) -> list[float]:
    """Solve a square system, with partial pivoting."""
    rows = [[*row, value] for row, value in zip(left, right, strict=True)]
    size = len(rows)
    for column in range(size):
        pivot = max(range(column, size), key=lambda k: abs(rows[k][column]))
        rows[column], rows[pivot] = rows[pivot], rows[column]
        for k in range(size):
            if k != column:
                factor = rows[k][column] / rows[column][column]
                rows[k] = [a - factor * b for a, b in zip(rows[k], rows[column], strict=True)]
    return [rows[k][size] / rows[k][k] for k in range(size)]
