"""The layered ranks as textbook loops over Python numbers, and golden values from them.

Nothing here knows numpy or the package under test. With `Fraction` inputs the loops are exact, so
``python tests/graphs/ranking/make_golden.py`` writes the same golden.json on every machine.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

Vector = list[Any]
Matrix = Sequence[Sequence[Any]]

GOLDEN = Path(__file__).with_name("golden.json")
WEIGHTED = [("0", "1"), ("1/2", "1"), ("9/10", "1"), ("1", "1"), ("1/2", "0"), ("4/5", "3/10")]
MODIFIED = ["0", "3/10", "1/2"]


def normalised(vector: Vector, fallback: Vector | None = None) -> Vector:
    """Divide by the sum; a zero vector becomes the fallback, and a zero fallback becomes uniform."""
    mass = sum(vector)
    if mass > 0:
        return [value / mass for value in vector]
    if fallback is not None:
        return normalised(fallback)
    return [Fraction(1, len(vector)) for _ in vector]


def weighted_step(weights: Matrix, rank: Vector, activation: Vector, gamma: Any, theta: Any) -> Vector:
    """N(gamma P r + (1 - gamma) a / sum(a)), entry by entry."""
    n_targets, n_sources = len(weights), len(rank)
    passed = [0 * gamma] * n_targets
    for j in range(n_sources):
        strength = sum(abs(weights[i][j]) for i in range(n_targets))
        degree = sum(1 for i in range(n_targets) if weights[i][j] != 0)
        for i in range(n_targets):
            if weights[i][j] != 0:
                share = theta * abs(weights[i][j]) / strength + (1 - theta) / degree
                passed[i] += share * rank[j]
    teleport = normalised(activation)
    return normalised([gamma * p + (1 - gamma) * t for p, t in zip(passed, teleport, strict=True)], activation)


def modified_step(weights: Matrix, rank: Vector, activation: Vector, zero_lowest: Any) -> Vector:
    """N((W r) * a) with the lowest entries of r counted as zero."""
    order = sorted(range(len(rank)), key=lambda k: (rank[k], k))
    lowest = set(order[: int(zero_lowest * len(rank))])
    kept = [0 * value if k in lowest else value for k, value in enumerate(rank)]
    product = [sum(abs(w) * r for w, r in zip(row, kept, strict=True)) for row in weights]
    factor = activation if sum(activation) > 0 else [1] * len(product)
    return normalised([p * a for p, a in zip(product, factor, strict=True)], activation)


def textbook_weighted(
    weights: Sequence[Matrix], inputs: Vector, activations: Sequence[Vector], gamma: Any, theta: Any
) -> list[Vector]:
    """All layers of the weighted rank."""
    ranks = [normalised(inputs)]
    for block, activation in zip(weights, activations, strict=True):
        ranks.append(weighted_step(block, ranks[-1], activation, gamma, theta))
    return ranks


def textbook_modified(
    weights: Sequence[Matrix], inputs: Vector, activations: Sequence[Vector], zero_lowest: Any
) -> list[Vector]:
    """All layers of the modified rank."""
    ranks = [normalised(inputs)]
    for block, activation in zip(weights, activations, strict=True):
        ranks.append(modified_step(block, ranks[-1], activation, zero_lowest))
    return ranks


def lcg(seed: int) -> Iterator[int]:
    """Numerical Recipes' linear congruential generator: the high 16 bits."""
    state = seed
    while True:
        state = (1664525 * state + 1013904223) % 2**32
        yield state >> 16


def make_case(seed: int, sizes: Sequence[int], zero_share: int) -> dict[str, Any]:
    """Random weights in eighths (of which about `zero_share` % are zero) and activations in quarters."""
    numbers = lcg(seed)
    weights = [
        [
            [
                Fraction(0) if next(numbers) % 100 < zero_share else Fraction(next(numbers) % 255 - 127, 8)
                for _ in range(n_sources)
            ]
            for _ in range(n_targets)
        ]
        for n_sources, n_targets in itertools.pairwise(sizes)
    ]
    activations = [[Fraction(next(numbers) % 400 + 1, 4) for _ in range(size)] for size in sizes]
    return {"weights": weights, "inputs": activations[0], "activations": activations[1:]}


def make_cases() -> dict[str, dict[str, Any]]:
    """Every golden graph by its name, in fractions."""
    cases = {
        "dense": make_case(1, (5, 7, 4), 0),
        "sparse": make_case(2, (6, 9, 6, 5), 60),
        "wide": make_case(3, (3, 14, 3), 20),
        "dangling": make_case(4, (5, 6, 5), 10),
        "silent": make_case(5, (4, 5, 4), 10),
        "cut": make_case(6, (4, 5, 4), 10),
    }
    for block in cases["dangling"]["weights"]:
        for row in block:
            row[2] = Fraction(0)
    cases["silent"]["activations"][0] = [Fraction(0)] * 5
    cases["cut"]["weights"][1] = [[Fraction(0)] * 5 for _ in range(4)]
    return cases


def make_golden() -> dict[str, Any]:
    """Inputs and ranks of every case; every number is a float nearest to the exact fraction."""
    golden: dict[str, Any] = {}
    for name, case in make_cases().items():
        graph = (case["weights"], case["inputs"], case["activations"])
        weighted = {f"{g} {t}": textbook_weighted(*graph, Fraction(g), Fraction(t)) for g, t in WEIGHTED}
        modified = {z: textbook_modified(*graph, Fraction(z)) for z in MODIFIED}
        golden[name] = _floats({**case, "weighted": weighted, "modified": modified})
    return golden


def _floats(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _floats(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_floats(entry) for entry in value]
    return float(value)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(make_golden(), indent=None, separators=(",", ":")) + "\n")
