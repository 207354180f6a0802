"""The formulas as loops over Python numbers: slow, obvious, and independent of the package."""

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
