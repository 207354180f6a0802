"""The data that the page of an inspection holds: scores, orders of removal, and numbers of neurons removed.

The page repeats no arithmetic of the pruners: it holds the order in which pruning removes the neurons of each layer, and the
number that each budget removes for every choice on the page. Scores are only shown, so they are rounded to float32.
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

# Largest size of the page's arrays, in bytes of base64.
DATA_LIMIT = 30_000_000
# The edges of this many neurons of each layer are never left out.
MIN_NEURONS_WITH_EDGES = 64

IntArray: TypeAlias = npt.NDArray[np.int64]
IndexType: TypeAlias = type[np.uint16] | type[np.uint32]


def payload(inspection: Inspection, *, top_edges: int = 3, data_limit: int = DATA_LIMIT) -> dict[str, Any]:
    """Collect the data of the page, ready for JSON.

    Parameters
    ----------
    inspection : Inspection
    top_edges : int
        Largest number of edges shown on each side of a neuron, at least 1.
    data_limit : int
        Approximate largest size of the arrays, in bytes of base64. If they are larger, the page leaves out the edges of neurons
        with low scores, then the scores in the other topology, then the other scorers from the last one on; a note lists them.
        The scores of the main scorer, and the edges of the 64 highest neurons of each layer, are always included.

    Returns
    -------
    dict
        Numbers, strings, and arrays as ``{"dtype", "data"}``, where ``data`` is base64 of little-endian bytes. Arrays of
        neurons run through all prunable layers: each scorer has float32 ``scores``, and uint16 or uint32 ``positions`` (how
        many neurons of the layer are removed before this one). ``removed`` is a (multiples, amounts, layers) array, the number
        of neurons removed from each layer: at the top level by local pruning, and in each scorer by global pruning.

    Raises
    ------
    OptionError
        An option is out of range.
    GraphError
        The weights or their sums hold NaN or Inf.

    Notes
    -----
    Cost: a few reads of each block next to a prunable layer.

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
    names, edges_per_layer = _choose_what_fits(list(candidates), choices, edge_bytes, data_limit)
    notes = _size_notes([name for name in candidates if name not in names], edges_per_layer, choices)
    removed_by_local = local_removals(choices)
    positions = {name: _removal_positions(inspection, candidates[name]) for name in names}
    removed_by_global = {name: global_removals(choices, in_global) for name, (_, in_global) in positions.items()}
    removed = {name: {"local": removed_by_local, "global": removed_by_global[name]} for name in names}
    if not all(_shows_masks(candidates[name], choices, positions[name][0], removed[name]) for name in names):
        notes.append(
            f"At {amount_label(inspection.amount)} the pipeline keeps other neurons than this page shows: it prunes each graph "
            "by itself, and the page compares all layers."
        )
    dtype = _index_dtype(max(choices.sizes))
    return {
        "source": inspection.source,
        "topology": inspection.topology,
        "scorer": inspection.scorer,
        "budget": inspection.budget,
        "normalize": inspection.budgets.global_.normalize,
        "min_keep": choices.min_keep,
        "slider_end": SLIDER_END,
        "amounts": [amount_label(amount) for amount in choices.amounts],
        "multiples": choices.multiples,
        "inspected": {
            "amount": choices.amount_index,
            "multiple": choices.multiple_index,
            "slider": _slider(inspection, choices),
        },
        "refusals": choices.refusals,
        "removed": _array(removed_by_local, dtype),
        "calibration": _describe_calibration(inspection.calibration),
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
                "positions": _array(np.concatenate(positions[name][0]), dtype),
                "removed": _array(removed_by_global[name], dtype),
            }
            for name in names
        },
        "facts": _facts(inspection),
        "edges": _edges(inspection, edges_per_layer, top_edges),
    }


# --- parts of the payload


def _size_notes(left_out: Sequence[str], edges_per_layer: int, choices: Choices) -> list[str]:
    notes = []
    if left_out:
        notes.append(f"These scorers were left out to keep the page small: {', '.join(left_out)}.")
    if edges_per_layer < max(choices.sizes):
        notes.append(
            f"To keep the page small, it has only the edges of the {edges_per_layer:,} highest neurons of each layer."
        )
    return notes


def _layers(inspection: Inspection) -> list[dict[str, Any]]:
    """Return the prunable layers, each with the layers next to it in its graph."""
    layers = []
    for name, (graph_index, node_layer) in inspection.layer_positions().items():
        graph = inspection.graphs[graph_index].graph
        neighbours: dict[str, Any] = {}
        for side, layer in (("in", node_layer - 1), ("out", node_layer + 1)):
            exists = 0 <= layer < len(graph.layer_sizes)
            neighbours[side] = {"name": graph.names[layer], "size": graph.layer_sizes[layer]} if exists else None
        layers.append({"name": name, "size": graph.layer_sizes[node_layer], **neighbours})
    return layers


def _removal_positions(inspection: Inspection, result: ScorerResult) -> tuple[list[IntArray], list[IntArray]]:
    """Return the `removal_positions` of every layer under the local and under the global budget."""
    prunable = [place.layer for entry in inspection.graphs for place in entry.prunable]
    # These pruners read neither weights nor activations, so the graphs of the other topology are not needed.
    records = [
        LayerRecord(layer.name, torch.from_numpy(result.importance[layer.name]), explicit=not layer.output_maps)
        for layer in prunable
    ]
    in_local, in_global = (
        [positions.numpy() for positions in pruner.removal_positions(records)]
        for pruner in (inspection.budgets.local, inspection.budgets.global_)
    )
    return in_local, in_global


def _shows_masks(
    result: ScorerResult, choices: Choices, positions: Sequence[IntArray], removals: Mapping[str, IntArray]
) -> bool:
    """Whether the neurons that the page shows as kept at the inspection's amount are those of the inspection's masks."""
    return all(
        np.array_equal(keep.numpy(), layer_positions >= removed)
        for budget, masks in result.masks.items()
        for keep, layer_positions, removed in zip(
            masks.values(), positions, removals[budget][choices.multiple_index, choices.amount_index], strict=True
        )
    )


def _slider(inspection: Inspection, choices: Choices) -> int:
    """Return where the slider stands at the inspection's amount, in per cent of all neurons."""
    share = inspection.amount
    if isinstance(share, int):
        # The local budget removes this number from each layer.
        share = share * (len(choices.sizes) if inspection.budget == "local" else 1) / sum(choices.sizes)
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
    """Return the activation of every neuron, and the sums of its edge weights on both sides."""
    activations, in_strengths, out_strengths = [], [], []
    for graph_index, node_layer in inspection.layer_positions().values():
        graph = inspection.graphs[graph_index].graph
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
    """Return the strongest edges of the `per_layer` highest neurons of each layer, by the main scorer."""
    chosen: list[npt.NDArray[np.intp]] = []
    parts: dict[str, list[npt.NDArray[Any]]] = {"in_nodes": [], "in_shares": [], "out_nodes": [], "out_shares": []}
    is_complete = True
    for name, (graph_index, node_layer) in inspection.layer_positions().items():
        graph, rank = inspection.graphs[graph_index].graph, inspection.main.ranks[graph_index]
        scores = inspection.main.importance[name]
        is_complete = is_complete and len(scores) <= per_layer
        chosen.append(np.sort(np.argsort(-scores, kind="stable")[:per_layer]))
        strongest = strongest_edges(graph, rank, node_layer, top=top)
        for key, values in strongest._asdict().items():
            # A node with fewer edges has -1 as the remaining nodes and 0 as their shares; the page ignores edges of share 0.
            parts[key].append(values[chosen[-1]].clip(min=0))
    node_dtype = _node_dtype(inspection)
    return {
        "top": top,
        "held": [len(neurons) for neurons in chosen],
        "neurons": None if is_complete else _array(np.concatenate(chosen), np.uint32),
        **{
            key: _array(np.concatenate(values), node_dtype if key.endswith("nodes") else np.float32)
            for key, values in parts.items()
        },
    }


def _node_dtype(inspection: Inspection) -> IndexType:
    return _index_dtype(max(size for entry in inspection.graphs for size in entry.graph.layer_sizes))


def _choose_what_fits(names: Sequence[str], choices: Choices, edge_bytes: int, limit: int) -> tuple[list[str], int]:
    """Return the scorers that fit, and the number of neurons per layer whose edges fit (`edge_bytes` for each neuron)."""
    sizes, n_neurons = choices.sizes, sum(choices.sizes)
    index_bytes = np.dtype(_index_dtype(max(sizes))).itemsize
    # Base64 takes four bytes for three.
    per_table = index_bytes * len(choices.multiples) * len(choices.amounts) * len(sizes) * 4 / 3
    per_scorer = (4 + index_bytes) * n_neurons * 4 / 3 + per_table
    per_neuron = edge_bytes * 4 / 3
    # The first scorer, three facts of each neuron, and the table of local pruning are always there.
    left = limit - per_scorer - 12 * n_neurons * 4 / 3 - per_table
    # If not every neuron has edges, the page also holds the uint32 indices of those that have.
    per_chosen = per_neuron + 4 * 4 / 3
    fewest_edges = sum(min(size, MIN_NEURONS_WITH_EDGES) for size in sizes) * per_chosen
    n_others = int(np.clip((left - fewest_edges) // per_scorer, 0, len(names) - 1))
    left -= n_others * per_scorer
    per_layer = max(sizes)
    if left < n_neurons * per_neuron:
        per_layer = min(per_layer, max(MIN_NEURONS_WITH_EDGES, int(left // (per_chosen * len(sizes)))))
    return list(names[: 1 + n_others]), per_layer


def _describe_calibration(provenance: Mapping[str, Any]) -> str:
    source = str(provenance.get("source", "unknown"))
    sizes = [f"{provenance[key]:,} {key}" for key in ("sequences", "tokens") if isinstance(provenance.get(key), int)]
    return f"{source} ({', '.join(sizes)})" if sizes else source


def _index_dtype(size: int) -> IndexType:
    return np.uint16 if size <= 1 << 16 else np.uint32


def _array(values: npt.NDArray[Any], dtype: type[np.generic]) -> dict[str, str]:
    little = np.dtype(dtype).newbyteorder("<")
    return {"dtype": np.dtype(dtype).name, "data": base64.b64encode(values.astype(little).tobytes()).decode("ascii")}
