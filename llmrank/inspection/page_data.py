"""What the page of an inspection holds: numbers for people to look at, and the exact orders of removal.

Sets of neurons are exact: the page holds the orders in which the pruners remove neurons, and only compares positions in
them with counts. Scores are there to be looked at, in float32.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from graphs.analysis.measures import effective_number, gini, top_share
from graphs.analysis.node_summary import strongest_edges
from graphs.analysis.strengths import strengths
from llmrank.errors import OptionError
from llmrank.inspection.inspection import Inspection, Scored
from llmrank.pipeline.report import environment
from llmrank.prune import LayerRecord, global_count, local_count, round_width

__all__ = ["DATA_LIMIT", "payload"]

FORMAT = 1
# Bytes of base64. A model of 46,080 neurons with ten scorers needs 10 MB.
DATA_LIMIT = 30_000_000
# The slider of the page ends there, in per cent.
SLIDER_END = 90
# Neurons of every layer whose edges come before other scorers where not all fits.
EDGES_AT_LEAST = 64

IntArray: TypeAlias = npt.NDArray[np.int64]


def payload(
    inspection: Inspection,
    *,
    top_edges: int = 3,
    data_limit: int = DATA_LIMIT,
) -> dict[str, Any]:
    """What the page holds, ready for JSON.

    Parameters
    ----------
    inspection : Inspection
    top_edges : int
        Edges to show on either side of a neuron, at least 1.
    data_limit : int
        Bytes of the arrays. What does not fit is left out and said so, in this order: edges of all but the highest
        neurons, the other topology, the other scorers from the last. The scorer asked for is always there.

    Returns
    -------
    dict
        Numbers, strings, and arrays as ``{"dtype", "data"}`` with base64 of little-endian bytes. Arrays run over all
        prunable neurons, layer after layer: for every scorer float32 ``scores``, uint16 or uint32 ``local`` and uint32
        ``global`` positions (the pruners' ``removal_positions``), and ``ties``: packed bits, by local position, whether
        the score equals the one before.

    Raises
    ------
    OptionError
        An option out of range.
    GraphError
        NaN or Inf in the weights.

    Notes
    -----
    Cost: a few reads of every block beside a prunable layer; memory of the arrays and a few bands of a block.

    Examples
    --------
    >>> from llmrank.inspection.inspection import inspect_model
    >>> from llmrank.pipeline import IsolatedFFNPipeline
    >>> from llmrank.score import ActivationScorer
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    >>> pipeline = IsolatedFFNPipeline(model, None, calibration=torch.rand(8, 4))
    >>> content = payload(inspect_model(pipeline, {"activation": ActivationScorer()}, "activation"))
    >>> content["layers"][0]["size"], content["asked"]["percent"], content["scorers"]["activation"]["local"]["dtype"]
    (6, 30, 'uint16')
    """
    for name, number, least in (("top_edges", top_edges, 1), ("data_limit", data_limit, 0)):
        if not isinstance(number, int) or isinstance(number, bool) or number < least:
            raise OptionError(f"{name} must be an integer >= {least}, got {number!r}")
    layers = _layers(inspection)
    sizes = [layer["size"] for layer in layers]
    entries = {inspection.scorer: inspection.main, **inspection.scored}
    entries[f"{inspection.scorer}, {inspection.other_topology}"] = inspection.elsewhere
    edge_bytes = np.dtype(_neighbours(inspection)).itemsize + 4
    chosen, edges_held = _fitting(list(entries), sizes, 2 * top_edges * edge_bytes, data_limit)
    notes = []
    if len(chosen) < len(entries):
        missing = ", ".join(name for name in entries if name not in chosen)
        notes.append(f"To keep the page small these scorers were left out: {missing}.")
    if edges_held < max(sizes):
        notes.append(
            f"To keep the page small only the {edges_held:,} highest neurons of a layer come with their edges."
        )
    orders = {name: _orders(inspection, entries[name]) for name in chosen}
    asked = _asked(inspection, sizes)
    if not all(_reproduced(inspection, entries[name], orders[name], asked) for name in chosen):
        notes.append(
            f"By {asked['label']} the inspection itself keeps other neurons than this page shows: it compared layers otherwise, "
            "graph by graph."
        )
    return {
        "format": FORMAT,
        "source": inspection.source,
        "topology": inspection.topology,
        "scorer": inspection.scorer,
        "pruner": inspection.pruner,
        "normalize": inspection.budgets.global_.normalize,
        "min_keep": inspection.budgets.local.min_keep,
        "multiple_of": inspection.budgets.local.multiple_of,
        "slider_end": SLIDER_END,
        "asked": asked,
        "calibration": _calibration(inspection.calibration),
        "versions": environment(),
        "graph": {
            "nodes": sum(entry.graph.nodes for entry in inspection.graphs),
            "edges": sum(entry.graph.edges for entry in inspection.graphs),
        },
        "notes": notes,
        "layers": layers,
        "scorers": {name: _scorer(entries[name], layers, *orders[name]) for name in chosen},
        "facts": _facts(inspection),
        "edges": _edges(inspection, edges_held, top_edges),
    }


# --- parts of the payload


def _layers(inspection: Inspection) -> list[dict[str, Any]]:
    """Prunable layers and their neighbours in the graph."""
    layers = []
    for name, (position, node_layer) in inspection.places().items():
        graph = inspection.graphs[position].graph
        near: dict[str, Any] = {}
        for side, neighbour in (("in", node_layer - 1), ("out", node_layer + 1)):
            inside = 0 <= neighbour < len(graph.layers)
            near[side] = {"name": graph.names[neighbour], "size": graph.layers[neighbour]} if inside else None
        layers.append({"name": name, "size": graph.layers[node_layer], **near})
    return layers


def _orders(inspection: Inspection, scored: Scored) -> tuple[list[IntArray], list[IntArray]]:
    """Positions in the removal orders of both budgets, layer by layer."""
    prunable = [layer for entry in inspection.graphs for layer in entry.prunable.values()]
    # Importance is all that pruners need: the graphs of the other topology are not missed.
    records = [
        LayerRecord(layer.name, torch.from_numpy(scored.importance[layer.name]), explicit=not layer.consumers)
        for layer in prunable
    ]
    budgets = inspection.budgets
    local, together = (pruner.removal_positions(records) for pruner in (budgets.local, budgets.global_))
    return [positions.numpy() for positions in local], [positions.numpy() for positions in together]


def _asked(inspection: Inspection, sizes: Sequence[int]) -> dict[str, Any]:
    """The amount of the inspection: how it is called, and the counts it means."""
    amount, total = inspection.amount, sum(sizes)
    if isinstance(amount, int):
        percent, label, share = None, f"{amount:,} neurons", min(amount / max(total, 1), SLIDER_END / 100)
    else:
        whole = round(100 * amount)
        percent = whole if whole / 100 == amount and whole <= SLIDER_END else None
        label, share = f"{100 * amount:.6g} %", amount
    return {
        "percent": percent,
        "label": label,
        "share": share,
        "local": [local_count(amount, size) for size in sizes],
        "global": global_count(amount, total),
    }


def _reproduced(
    inspection: Inspection, scored: Scored, orders: tuple[list[IntArray], list[IntArray]], asked: Mapping[str, Any]
) -> bool:
    """Whether positions and counts give the masks that the inspection's pruners gave, as the page takes them."""
    local, together = orders
    removed = {
        "local": asked["local"],
        "global": [int((positions < asked["global"]).sum()) for positions in together],
    }
    budget = inspection.budgets.local

    def width(size: int, gone: int) -> int:
        if budget.multiple_of == 1:
            return size - gone
        return round_width(size - gone, size, budget.multiple_of, budget.min_keep)

    return all(
        np.array_equal(masks[layer].numpy(), positions >= len(positions) - width(len(positions), gone))
        for name, masks in scored.masks.items()
        for layer, positions, gone in zip(inspection.places(), local, removed[name], strict=True)
    )


def _scorer(
    scored: Scored, layers: Sequence[Mapping[str, Any]], local: list[IntArray], together: list[IntArray]
) -> dict[str, Any]:
    scores = [scored.importance[layer["name"]] for layer in layers]
    ties = []
    for values, positions in zip(scores, local, strict=True):
        ascending = np.empty_like(values)
        ascending[positions] = values
        ties.append(np.diff(ascending, prepend=np.nan) == 0)
    return {
        "scores": _array(np.concatenate(scores), np.float32),
        "local": _array(np.concatenate(local), _index(max(map(len, local)))),
        "global": _array(np.concatenate(together), np.uint32),
        "ties": _array(np.packbits(np.concatenate(ties), bitorder="little"), np.uint8),
        "effective": [effective_number(values) for values in scores],
        "gini": [gini(values) for values in scores],
        "top": [top_share(values) for values in scores],
    }


def _facts(inspection: Inspection) -> dict[str, Any]:
    activations, into, out = [], [], []
    for position, node_layer in inspection.places().values():
        graph = inspection.graphs[position].graph
        activations.append(graph.activations[node_layer])
        arriving, leaving = strengths(graph, node_layer)
        into.append(arriving)
        out.append(leaving)
    return {
        "activation": _array(np.concatenate(activations), np.float32),
        "in_strength": _array(np.concatenate(into), np.float32),
        "out_strength": _array(np.concatenate(out), np.float32),
    }


def _edges(inspection: Inspection, held: int, top: int) -> dict[str, Any]:
    """Strongest edges of the `held` highest neurons of every layer, by the rank of the scorer asked for."""
    chosen: list[npt.NDArray[np.intp]] = []
    parts: dict[str, list[npt.NDArray[Any]]] = {"in_nodes": [], "in_shares": [], "out_nodes": [], "out_shares": []}
    index = _neighbours(inspection)
    everything = True
    for name, (position, node_layer) in inspection.places().items():
        graph, rank = inspection.graphs[position].graph, inspection.main.ranks[position]
        scores = inspection.main.importance[name]
        everything = everything and len(scores) <= held
        chosen.append(np.sort(np.argsort(-scores, kind="stable")[:held]))
        found = strongest_edges(graph, rank, node_layer, top=top)
        for key, values in found._asdict().items():
            # A share of 0 says that there is no such edge.
            parts[key].append(values[chosen[-1]].clip(min=0))
    return {
        "top": top,
        "held": [len(neurons) for neurons in chosen],
        "neurons": None if everything else _array(np.concatenate(chosen), np.uint32),
        **{
            key: _array(np.concatenate(values), index if key.endswith("nodes") else np.float32)
            for key, values in parts.items()
        },
    }


def _neighbours(inspection: Inspection) -> type[np.uint16] | type[np.uint32]:
    """The type of an index into any layer of the graphs."""
    return _index(max(size for entry in inspection.graphs for size in entry.graph.layers))


def _fitting(names: Sequence[str], sizes: Sequence[int], edge_bytes: int, limit: int) -> tuple[list[str], int]:
    """Which scorers fit, the first in any case, and of how many neurons a layer the edges (bytes a neuron) do."""
    total = sum(sizes)
    # Base64 takes four bytes for three. A scorer: score, local and global position, a bit for ties; facts: three floats.
    scorer = (8 + np.dtype(_index(max(sizes))).itemsize + 1 / 8) * total * 4 / 3
    edges = edge_bytes * 4 / 3
    left = limit - scorer - 12 * total * 4 / 3
    least = sum(min(size, EDGES_AT_LEAST) for size in sizes) * edges
    more = int(np.clip((left - least) // scorer, 0, len(names) - 1))
    left -= more * scorer
    if left >= total * edges:
        return list(names[: 1 + more]), max(sizes)
    held = max(EDGES_AT_LEAST, int(left // (edges * len(sizes))))
    return list(names[: 1 + more]), min(held, max(sizes))


def _calibration(provenance: Mapping[str, Any]) -> str:
    source = str(provenance.get("source", "unknown"))
    sizes = [f"{provenance[key]:,} {key}" for key in ("sequences", "tokens") if isinstance(provenance.get(key), int)]
    return f"{source} ({', '.join(sizes)})" if sizes else source


def _index(size: int) -> type[np.uint16] | type[np.uint32]:
    return np.uint16 if size <= 1 << 16 else np.uint32


def _array(values: npt.NDArray[Any], dtype: type[np.generic]) -> dict[str, str]:
    little = np.dtype(dtype).newbyteorder("<")
    return {"dtype": np.dtype(dtype).name, "data": base64.b64encode(values.astype(little).tobytes()).decode("ascii")}
