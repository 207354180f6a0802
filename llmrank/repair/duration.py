"""How long a repair will take."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from time import perf_counter

import torch

from llmrank.models import FFNs
from llmrank.repair.base_repair import BaseRepair

__all__ = ["repair_seconds"]

# Width of the matrices whose product is timed, and how often it is timed.
WIDTH, REPETITIONS = 1024, 3


def repair_seconds(
    method: BaseRepair, ffns: FFNs, kept: Mapping[str, int], tokens: int, device: torch.device | None = None
) -> float:
    """Estimate how many seconds the linear algebra of a repair takes, without the forward passes.

    Parameters
    ----------
    method : BaseRepair
    ffns : FFNs
    kept : mapping from str to int
        Number of kept neurons, by the name of the layer; layers that are left out are not repaired.
    tokens : int
        Number of calibration tokens. For an expert, only a share of them counts, as if its router used all experts equally often.
    device : torch.device, optional
        Where the repair computes, if that is not where the weights are.

    Notes
    -----
    The number of operations is divided by the speed of a product of two float64 matrices, which is measured in some 0.1 seconds.
    """
    operations: dict[torch.device, float] = {}
    for name, layer in ffns.layers.items():
        outputs = sum(len(output_map.weight) for output_map in layer.output_maps)
        of_layer = method.operations(layer.size, kept[name], outputs) if name in kept else 0.0
        if of_layer:
            share = float(layer.token_share)
            # The sums over the tokens are those of products of two neurons, of which symmetry saves half, and of products of a
            # neuron and an output. What removed neurons add to an output takes as long, unless the map of an FFN need not run
            # before it is repaired. They are in float32, which counts half.
            read = layer.size if method.reads_removed or method.reselects else kept[name]
            multiplied = read if method.needs_dense_stream and layer.mixture is None else layer.size
            of_layer += tokens * share * (read**2 + 2.0 * multiplied * outputs) / 2.0
            place = device or layer.output_maps[0].weight.device
            operations[place] = operations.get(place, 0.0) + of_layer
    return sum(count / _speed(place) for place, count in operations.items())


@cache
def _speed(device: torch.device) -> float:
    """Return the highest measured number of float64 operations a second; it is measured once in a process."""
    if device.type == "mps":  # MPS has no float64, so MomentSums uses the CPU
        device = torch.device("cpu")
    matrix = torch.eye(WIDTH, dtype=torch.float64, device=device)
    seconds = []
    for _ in range(REPETITIONS):
        start = perf_counter()
        float((matrix @ matrix)[0, 0])  # waits for the device
        seconds.append(perf_counter() - start)
    return 2.0 * WIDTH**3 / min(seconds)
