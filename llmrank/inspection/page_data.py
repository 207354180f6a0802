"""The data that the page of an inspection holds: scores, orders of removal, and numbers of neurons removed.

The page repeats no arithmetic of the pruners. It holds the order in which pruning removes the neurons of each layer, and
how many of them each budget removes at every amount that the page offers; the neurons of the lowest positions are removed.
Scores are only displayed, and are rounded to float32.
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
from graphs.linalg.blocks import FloatArray
from llmrank.errors import OptionError
from llmrank.inspection.budgets import amount_label
from llmrank.inspection.inspection import Inspection, ScorerResult
from llmrank.inspection.removal_counts import SLIDER_END, Choices, global_removals, local_removals, offered_choices
from llmrank.pipeline.report import environment
from llmrank.prune import LayerRecord

__all__ = ["DATA_LIMIT", "payload"]

# Bytes of base64. A model of 46,080 neurons with eleven scorers needs about 7 MB.
DATA_LIMIT = 30_000_000
# If not everything fits, edges of this many neurons per layer are kept before other scorers.
MIN_NEURONS_WITH_EDGES = 64

IntArray: TypeAlias = npt.NDArray[np.int64]
IndexType: TypeAlias = type[np.uint16] | type[np.uint32]


def payload(
    inspection: Inspection,
    *,
    top_edges: int = 3,
    data_limit: int = DATA_LIMIT,
) -> dict[str, Any]:
    """Collect the data of the page, ready for JSON.

    Parameters
    ----------
    inspection : Inspection
    top_edges : int
        Edges shown on each side of a neuron, at least 1.
    data_limit : int
        Largest size of the arrays in bytes. If they are larger, parts are left out in this order: the edges of all neurons
        but those of the highest scores, the scores in the other topology, and the other scorers, the last one first. A note
        on the page lists them. The scores of the inspection's own scorer are always included.

    Returns
    -------
    dict
        Numbers, strings, and arrays as ``{"dtype", "data"}``, where ``data`` is base64 of little-endian bytes. Arrays of
        neurons run through all prunable layers: each scorer has float32 ``scores``, and uint16 or uint32 ``positions`` (how
        many neurons of the layer are removed before this one). ``removed``, (multiples, amounts, layers), is how many neurons
        are removed from each layer: at the top level by local pruning, and in each scorer by global pruning.

    Raises
    ------
    OptionError
        An option is out of range.
    GraphError
        The weights hold NaN or Inf.

    Notes
    -----
    Cost: a few reads of each block next to a prunable layer; memory for the arrays and for a few bands of a block.

    Examples
    --------
    >>> from llmrank.inspection.inspection import inspect_model
    >>> from llmrank.pipeline import IsolatedFFNPipeline
    >>> from llmrank.score import ActivationScorer
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    >>> pipeline = IsolatedFFNPipeline(model, None, calibration=torch.rand(8, 4))
    >>> content = payload(inspect_model(pipeline, {"activation": ActivationScorer()}, "activation"))
    >>> content["layers"][0]["size"], content["amounts"][content["inspected"]["amount"]]
    (6, '30 %')
    """
    for name, number, least in (("top_edges", top_edges, 1), ("data_limit", data_limit, 0)):
        if not isinstance(number, int) or isinstance(number, bool) or number < least:
            raise OptionError(f"{name} must be an integer >= {least}, got {number!r}")
    layers = _layers(inspection)
    choices = offered_choices(inspection, {layer["name"]: layer["size"] for layer in layers})
    candidates = {inspection.scorer: inspection.main, **inspection.results}
    candidates[f"{inspection.scorer}, {inspection.other_topology}"] = inspection.in_other_topology
    edge_bytes = 2 * top_edges * (np.dtype(_node_dtype(inspection)).itemsize + 4)
    names, edges_per_layer = _fitting(list(candidates), choices, edge_bytes, data_limit)
    notes = _left_out([name for name in candidates if name not in names], edges_per_layer, choices)
    local = local_removals(choices)
    orders = {name: _removal_orders(inspection, candidates[name]) for name in names}
    removals = {name: global_removals(choices, together) for name, (_, together) in orders.items()}
    if not all(
        _agrees(candidates[name], choices, positions, {"local": local, "global": removals[name]})
        for name, (positions, _) in orders.items()
    ):
        notes.append(
            f"At {amount_label(inspection.amount)} the pipeline keeps other neurons than this page shows: it prunes each graph "
            "by itself, and the page compares all layers."
        )
    dtype = _index_dtype(max(choices.sizes))
    return {
        "source": inspection.source,
        "topology": inspection.topology,
        "scorer": inspection.scorer,
        "pruner": inspection.pruner,
        "normalize": inspection.budgets.global_.normalize,
        "min_keep": choices.min_keep,
        "slider_end": SLIDER_END,
        "amounts": [amount_label(amount) for amount in choices.amounts],
        "multiples": choices.multiples,
        "inspected": {"amount": choices.amount, "multiple": choices.multiple, "slider": _slider(inspection, choices)},
        "refusals": choices.refusals,
        "removed": _array(local, dtype),
        "calibration": _calibration(inspection.calibration),
        "versions": environment(),
        "graph": {
            "nodes": sum(entry.graph.n_nodes for entry in inspection.graphs),
            "edges": sum(entry.graph.n_edges for entry in inspection.graphs),
        },
        "notes": notes,
        "layers": layers,
        "scorers": {
            name: {
                **_scores([candidates[name].importance[layer["name"]] for layer in layers]),
                "positions": _array(np.concatenate(orders[name][0]), dtype),
                "removed": _array(removals[name], dtype),
            }
            for name in names
        },
        "facts": _facts(inspection),
        "edges": _edges(inspection, edges_per_layer, top_edges),
    }


# --- parts of the payload


def _left_out(scorers: Sequence[str], edges_per_layer: int, choices: Choices) -> list[str]:
    """Return notes about what does not fit into the page."""
    notes = []
    if scorers:
        notes.append(f"These scorers were left out to keep the page small: {', '.join(scorers)}.")
    if edges_per_layer < max(choices.sizes):
        notes.append(
            f"To keep the page small, it has edges only of the {edges_per_layer:,} highest neurons of each layer."
        )
    return notes


def _layers(inspection: Inspection) -> list[dict[str, Any]]:
    """Return the prunable layers and their neighbours in the graph."""
    layers = []
    for name, (position, node_layer) in inspection.places().items():
        graph = inspection.graphs[position].graph
        neighbours: dict[str, Any] = {}
        for side, number in (("in", node_layer - 1), ("out", node_layer + 1)):
            exists = 0 <= number < len(graph.layer_sizes)
            neighbours[side] = {"name": graph.names[number], "size": graph.layer_sizes[number]} if exists else None
        layers.append({"name": name, "size": graph.layer_sizes[node_layer], **neighbours})
    return layers


def _removal_orders(inspection: Inspection, result: ScorerResult) -> tuple[list[IntArray], list[IntArray]]:
    """Return when local and when global pruning removes each neuron, layer by layer."""
    prunable = [layer for entry in inspection.graphs for layer in entry.prunable.values()]
    # Importance is all that these pruners read, so the graphs of the other topology are not needed.
    records = [
        LayerRecord(layer.name, torch.from_numpy(result.importance[layer.name]), explicit=not layer.output_maps)
        for layer in prunable
    ]
    budgets = inspection.budgets
    local, together = (pruner.removal_positions(records) for pruner in (budgets.local, budgets.global_))
    return [positions.numpy() for positions in local], [positions.numpy() for positions in together]


def _agrees(
    result: ScorerResult, choices: Choices, positions: Sequence[IntArray], removals: Mapping[str, IntArray]
) -> bool:
    """Whether the neurons that the page shows as kept at the inspection's amount are those of the inspection's masks."""
    return all(
        np.array_equal(keep.numpy(), order >= removed)
        for budget, masks in result.masks.items()
        for keep, order, removed in zip(
            masks.values(), positions, removals[budget][choices.multiple, choices.amount], strict=True
        )
    )


def _slider(inspection: Inspection, choices: Choices) -> int:
    """Return where the slider stands at the inspection's amount, in per cent."""
    amount = inspection.amount
    share = amount / max(sum(choices.sizes), 1) if isinstance(amount, int) else amount
    return min(round(100 * share), SLIDER_END)


def _scores(scores: Sequence[FloatArray]) -> dict[str, Any]:
    """Return a scorer's scores, and for each layer how concentrated they are."""
    return {
        "scores": _array(np.concatenate(scores), np.float32),
        "effective": [effective_number(values) for values in scores],
        "gini": [gini(values) for values in scores],
        "top": [top_share(values) for values in scores],
    }


def _facts(inspection: Inspection) -> dict[str, Any]:
    activations, in_strengths, out_strengths = [], [], []
    for position, node_layer in inspection.places().values():
        graph = inspection.graphs[position].graph
        activations.append(graph.activations[node_layer])
        in_strength, out_strength = strengths(graph, node_layer)
        in_strengths.append(in_strength)
        out_strengths.append(out_strength)
    return {
        "activation": _array(np.concatenate(activations), np.float32),
        "in_strength": _array(np.concatenate(in_strengths), np.float32),
        "out_strength": _array(np.concatenate(out_strengths), np.float32),
    }


def _edges(inspection: Inspection, per_layer: int, top: int) -> dict[str, Any]:
    """Return the strongest edges of the highest neurons of each layer, by the inspection's own scorer."""
    chosen: list[npt.NDArray[np.intp]] = []
    parts: dict[str, list[npt.NDArray[Any]]] = {"in_nodes": [], "in_shares": [], "out_nodes": [], "out_shares": []}
    complete = True
    for name, (position, node_layer) in inspection.places().items():
        graph, rank = inspection.graphs[position].graph, inspection.main.ranks[position]
        scores = inspection.main.importance[name]
        complete = complete and len(scores) <= per_layer
        chosen.append(np.sort(np.argsort(-scores, kind="stable")[:per_layer]))
        strongest = strongest_edges(graph, rank, node_layer, top=top)
        for key, values in strongest._asdict().items():
            # Nodes with fewer edges are filled up with index -1 and share 0; the page ignores edges of share 0.
            parts[key].append(values[chosen[-1]].clip(min=0))
    node_dtype = _node_dtype(inspection)
    return {
        "top": top,
        "held": [len(neurons) for neurons in chosen],
        "neurons": None if complete else _array(np.concatenate(chosen), np.uint32),
        **{
            key: _array(np.concatenate(values), node_dtype if key.endswith("nodes") else np.float32)
            for key, values in parts.items()
        },
    }


def _node_dtype(inspection: Inspection) -> IndexType:
    """Return the dtype of a node's index in any layer of the graphs."""
    return _index_dtype(max(size for entry in inspection.graphs for size in entry.graph.layer_sizes))


def _fitting(names: Sequence[str], choices: Choices, edge_bytes: int, limit: int) -> tuple[list[str], int]:
    """Return the scorers that fit, and for how many neurons per layer the edges fit (`edge_bytes` for each neuron)."""
    sizes, total = choices.sizes, sum(choices.sizes)
    index = np.dtype(_index_dtype(max(sizes))).itemsize
    table = index * len(choices.multiples) * len(choices.amounts) * len(sizes)
    # Base64 takes four bytes for three.
    scorer = (4 + index) * total * 4 / 3 + table * 4 / 3
    edges = edge_bytes * 4 / 3
    # The first scorer, three facts of each neuron, and the table of local pruning are always there.
    left = limit - scorer - 12 * total * 4 / 3 - table * 4 / 3
    least = sum(min(size, MIN_NEURONS_WITH_EDGES) for size in sizes) * edges
    others = int(np.clip((left - least) // scorer, 0, len(names) - 1))
    left -= others * scorer
    if left >= total * edges:
        return list(names[: 1 + others]), max(sizes)
    per_layer = max(MIN_NEURONS_WITH_EDGES, int(left // (edges * len(sizes))))
    return list(names[: 1 + others]), min(per_layer, max(sizes))


def _calibration(provenance: Mapping[str, Any]) -> str:
    source = str(provenance.get("source", "unknown"))
    sizes = [f"{provenance[key]:,} {key}" for key in ("sequences", "tokens") if isinstance(provenance.get(key), int)]
    return f"{source} ({', '.join(sizes)})" if sizes else source


def _index_dtype(size: int) -> IndexType:
    return np.uint16 if size <= 1 << 16 else np.uint32


def _array(values: npt.NDArray[Any], dtype: type[np.generic]) -> dict[str, str]:
    little = np.dtype(dtype).newbyteorder("<")
    return {"dtype": np.dtype(dtype).name, "data": base64.b64encode(values.astype(little).tobytes()).decode("ascii")}
