"""The data that the page of an inspection holds: scores, orders of removal, and numbers of neurons removed.

The scripts of the page do not prune. They look up the order in which pruning removes the neurons of each layer, and how many
neurons each budget removes for every choice that the page offers. Scores are only shown, so they are rounded to float32.

A unit is a set of neurons that are removed together: one neuron, one neuron of every expert, or a whole expert. The units of a
layer, or of a mixture of experts, form a set of units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from graphs.analysis.measures import effective_number, gini, top_share
from graphs.analysis.node_summary import strongest_edges
from graphs.analysis.strengths import strengths
from graphs.linalg.blocks import FloatArray
from llmrank.evaluation.token_losses import LossChanges
from llmrank.inspection.budgets import amount_label
from llmrank.inspection.inspect_model import Inspection, ScorerResult
from llmrank.inspection.meaning.meanings import Meanings
from llmrank.inspection.mixtures import summarise_experts
from llmrank.inspection.page.arrays import IndexType, encode_array, index_dtype
from llmrank.inspection.page.meaning_data import changes_data, meanings_data
from llmrank.inspection.removal_counts import (
    SLIDER_END,
    Choices,
    Order,
    global_removals,
    local_removals,
    offered_choices,
    removal_order,
)
from llmrank.pipeline.descriptions import environment

__all__ = ["payload"]

# Largest size of the page's arrays, in bytes of base64.
DATA_LIMIT = 30_000_000
# Largest number of edges shown on each side of a neuron.
TOP_EDGES = 3
# The edges of this many neurons of each layer are never left out.
MIN_NEURONS_WITH_EDGES = 64
MASKS_DIFFER_NOTE = (
    "At {} the pipeline keeps other neurons than this page shows as kept: the pipeline prunes each graph separately, and the "
    "page compares the neurons of all layers."
)

IntArray: TypeAlias = npt.NDArray[np.int64]


def payload(
    inspection: Inspection,
    meanings: Meanings | None = None,
    changes: LossChanges | None = None,
    *,
    data_limit: int = DATA_LIMIT,
) -> dict[str, Any]:
    """Collect the data of the page, ready for JSON.

    Parameters
    ----------
    inspection : Inspection
    meanings : Meanings, optional
        The meanings of all neurons; see :func:`llmrank.inspection.page.meaning_data.meanings_data`.
    changes : LossChanges, optional
        What the inspection's masks change in the predictions of its calibration text.
    data_limit : int
        Approximate largest size of the arrays of the graph, in bytes of base64. If they are larger, the page leaves out the edges
        of neurons with low scores, then the scores in the other topology, then the other scorers from the last one on; a note
        lists them. The scores of the main scorer, and the edges of the 64 highest neurons of each layer, are always included.

    Returns
    -------
    dict
        Numbers, strings, and arrays as ``{"dtype", "data"}``, where ``data`` is base64 of little-endian bytes. An array of
        neurons holds the neurons of all layers, one layer after the other.

        - ``scorers`` holds, for each scorer, the float32 array ``scores``, and the ``positions`` of neurons by budget. The
          position of a neuron is the number of units that are removed before its own unit. If both budgets have the same
          positions, those of the global budget are left out.
        - ``units`` lists the sets of units: the layer, the first neuron, the number of neurons, and that of neurons in one unit.
        - ``removed`` is a (multiples, amounts, sets of units) array of the numbers of units that are removed. At the top level it
          is that of local pruning, and in each scorer that of global pruning.

    Raises
    ------
    GraphError
        The weights or their sums hold NaN or Inf.

    Notes
    -----
    Cost: a few reads of each block next to a prunable layer.

    Examples
    --------
    >>> import torch
    >>> from llmrank.inspection.inspect_model import inspect_model
    >>> from llmrank.pipeline import IsolatedFFNPipeline
    >>> from llmrank.score import ActivationScorer
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    >>> pipeline = IsolatedFFNPipeline(model, None, calibration=torch.rand(8, 4))
    >>> content = payload(inspect_model(pipeline, {"activation": ActivationScorer()}, "activation"))
    >>> content["layers"][0]["size"], content["amounts"][content["inspected"]["amount"]]
    (6, '30 %')
    """
    choices = offered_choices(inspection)
    layers = _layers(inspection, choices)
    candidates = {inspection.scorer: inspection.main, **inspection.results}
    candidates[f"{inspection.scorer}, {inspection.other_topology}"] = inspection.in_other_topology
    edge_bytes = 2 * TOP_EDGES * (np.dtype(_node_dtype(inspection)).itemsize + 4)
    names, edges_per_layer = _choose_what_fits(
        list(candidates), [layer["size"] for layer in layers], choices, edge_bytes, data_limit
    )
    notes = _notes(inspection.targets, [name for name in candidates if name not in names], edges_per_layer, layers)
    by_local, unit_sets = local_removals(choices), _unit_sets(inspection, choices)
    orders = {name: removal_order(inspection, choices, candidates[name]) for name in names}
    by_global = {name: global_removals(choices, order.removed_before) for name, order in orders.items()}
    if not all(
        _shows_masks(candidates[name], choices, unit_sets, orders[name], {"local": by_local, "global": by_global[name]})
        for name in names
    ):
        notes.append(MASKS_DIFFER_NOTE.format(amount_label(inspection.amount, inspection.targets)))
    dtype = index_dtype(max(choices.sizes))
    meaning, note = (None, None) if meanings is None else meanings_data(inspection, meanings)
    change, further_note = (None, None) if changes is None else changes_data(changes)
    notes += [each for each in (note, further_note) if each is not None]
    return {
        **_protocol(inspection, choices),
        "removed": encode_array(by_local, dtype),
        "notes": notes,
        "layers": layers,
        "units": unit_sets,
        "scorers": {
            name: {
                **_scores(list(candidates[name].importance.values())),
                "positions": _positions(orders[name], dtype),
                "removed": encode_array(by_global[name], dtype),
            }
            for name in names
        },
        "facts": _facts(inspection),
        "edges": _edges(inspection, edges_per_layer),
        "meanings": meaning,
        "changes": change,
    }


# --- parts of the payload


def _protocol(inspection: Inspection, choices: Choices) -> dict[str, Any]:
    """Return what was inspected and how, and what the page lets its reader choose."""
    return {
        "source": inspection.source,
        "topology": inspection.topology,
        "scorer": inspection.scorer,
        "budget": inspection.budget,
        "normalize": inspection.budgets.global_.normalize,
        "min_keep": choices.min_keep,
        "slider_end": SLIDER_END,
        "targets": list(inspection.targets),
        "part": "group" if inspection.targets == ("heads",) else "expert",
        "amounts": [amount_label(amount, inspection.targets) for amount in choices.amounts],
        "multiples": choices.multiples,
        "inspected": {
            "amount": choices.amount_index,
            "multiple": choices.multiple_index,
            "slider": _slider(inspection, choices),
        },
        "refusals": choices.refusals,
        "calibration": _describe_calibration(inspection.calibration),
        "versions": environment(),
        "graph": {
            "nodes": sum(entry.graph.n_nodes for entry in inspection.graphs),
            "edges": sum(entry.graph.n_edges for entry in inspection.graphs),
        },
    }


def _notes(
    targets: Sequence[str], left_out: Sequence[str], edges_per_layer: int, layers: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Return sentences that tell the reader of the page what it leaves out."""
    notes = []
    if len(targets) > 1:
        notes.append(
            "Neurons and experts are removed together. How much of each is removed must be computed anew for every amount, so "
            "this page shows only one amount."
        )
    if left_out:
        notes.append(f"These scorers were left out to keep the page small: {', '.join(left_out)}.")
    if edges_per_layer < max(layer["size"] for layer in layers):
        notes.append(
            f"To keep the page small, it has only the edges of the {edges_per_layer:,} highest neurons of each layer."
        )
    return notes


def _layers(inspection: Inspection, choices: Choices) -> list[dict[str, Any]]:
    """Return the layers, each with the layers next to it in its graph.

    A layer that is a mixture also has its experts; an attention whose heads are removed has its groups of heads in their place.
    """
    layers: list[dict[str, Any]] = []
    of_heads = {each.name: each for each in choices.unit_sets if each.target == "heads"}
    for name, layer in inspection.layers.items():
        graph = inspection.graphs[layer.graph].graph
        neighbours: dict[str, Any] = {}
        for side, other in (("in", layer.position - 1), ("out", layer.position + 1)):
            exists = 0 <= other < len(graph.layer_sizes)
            neighbours[side] = {"name": graph.names[other], "size": graph.layer_sizes[other]} if exists else None
        experts = [
            {
                "label": each.label(name),
                "start": part.start,
                "size": each.n_neurons,
                "routed": each.routed,
                "tokens": each.tokens,
                "weight": each.weight,
            }
            for part, each in zip(layer.parts, summarise_experts(inspection, name), strict=True)
        ] if layer.is_mixture else None  # fmt: skip
        if name in of_heads:
            size = of_heads[name].n_neurons
            experts = [
                {"label": str(k), "start": k * size, "size": size, "routed": True, "tokens": None, "weight": None}
                for k in range(of_heads[name].n_units)
            ]
        layers.append({"name": name, "size": layer.size, **neighbours, "experts": experts})
    return layers


def _unit_sets(inspection: Inspection, choices: Choices) -> list[dict[str, int]]:
    """Return each set of units: the index of its layer, its first neuron there, its size in neurons, and the size of a unit."""
    places = {
        part.layer.name: (number, part.start)
        for number, layer in enumerate(inspection.layers.values())
        for part in layer.parts
    }
    found = []
    for each in choices.unit_sets:
        number, start = min(places[layer.name] for layer in each.layers)
        found.append({"layer": number, "start": start, "size": each.n_units * each.n_neurons, "each": each.n_neurons})
    return found


def _shows_masks(
    result: ScorerResult,
    choices: Choices,
    unit_sets: Sequence[Mapping[str, int]],
    order: Order,
    removals: Mapping[str, IntArray],
) -> bool:
    """Whether the neurons that the page shows as kept at the inspection's amount are those of the inspection's masks."""
    for budget, by_layer in result.keep.items():
        positions = order.positions[budget]
        shown = [np.ones(len(each), dtype=bool) for each in positions]
        counts = removals[budget][choices.multiple_index, choices.amount_index]
        for entry, removed in zip(unit_sets, counts, strict=True):
            neurons = slice(entry["start"], entry["start"] + entry["size"])
            shown[entry["layer"]][neurons] = positions[entry["layer"]][neurons] >= removed
        if not all(np.array_equal(mask, kept) for mask, kept in zip(by_layer.values(), shown, strict=True)):
            return False
    return True


def _positions(order: Order, dtype: IndexType) -> dict[str, Any]:
    """Return the positions of neurons by budget, see :func:`payload`; one array is enough if both budgets have the same."""
    arrays = {budget: np.concatenate(positions) for budget, positions in order.positions.items()}
    if np.array_equal(arrays["local"], arrays["global"]):
        del arrays["global"]
    return {budget: encode_array(positions, dtype) for budget, positions in arrays.items()}


def _slider(inspection: Inspection, choices: Choices) -> int:
    """Return where the slider stands at the inspection's amount, in per cent of all neurons."""
    share = inspection.amount
    if isinstance(share, int):
        # The amount is a number: of units of each layer for the local budget; of the model for the global one.
        is_local = inspection.budget == "local"
        of_model = share * choices.counted_at_once(share) / choices.n_neurons
        share = share * len(choices.sizes) / sum(choices.sizes) if is_local else of_model
    return min(round(100 * share), SLIDER_END)


def _scores(scores: Sequence[FloatArray]) -> dict[str, Any]:
    """Return a scorer's scores, and for each layer how concentrated they are."""
    return {
        "scores": encode_array(np.concatenate(scores), np.float32),
        "effective": [effective_number(values) for values in scores],
        "gini": [gini(values) for values in scores],
        "top": [top_share(values) for values in scores],
    }


def _facts(inspection: Inspection) -> dict[str, Any]:
    """Return the activation of every neuron, and the sums of its edge weights on both sides."""
    activations, in_strengths, out_strengths = [], [], []
    for layer in inspection.layers.values():
        graph, node_layer = inspection.graphs[layer.graph].graph, layer.position
        activations.append(graph.activations[node_layer])
        in_strength, out_strength = strengths(graph, node_layer)
        in_strengths.append(in_strength)
        out_strengths.append(out_strength)
    return {
        "activation": encode_array(np.concatenate(activations), np.float32),
        "in_strength": encode_array(np.concatenate(in_strengths), np.float32),
        "out_strength": encode_array(np.concatenate(out_strengths), np.float32),
    }


def _edges(inspection: Inspection, per_layer: int) -> dict[str, Any]:
    """Return the strongest edges of those `per_layer` neurons of each layer that the main scorer scores highest."""
    chosen: list[npt.NDArray[np.intp]] = []
    parts: dict[str, list[npt.NDArray[Any]]] = {"in_nodes": [], "in_shares": [], "out_nodes": [], "out_shares": []}
    is_complete = True
    for name, layer in inspection.layers.items():
        (graph, rank), node_layer = inspection.explained[layer.graph], layer.position
        scores = inspection.main.importance[name]
        is_complete = is_complete and len(scores) <= per_layer
        chosen.append(np.sort(np.argsort(-scores, kind="stable")[:per_layer]))
        strongest = strongest_edges(graph, rank, node_layer, top=TOP_EDGES)
        for key, values in strongest._asdict().items():
            # A node with fewer edges has the node -1 with the share 0 in the place of each missing edge. The page
            # ignores edges of share 0, so -1 becomes 0, because the indices have no sign.
            parts[key].append(values[chosen[-1]].clip(min=0))
    node_dtype = _node_dtype(inspection)
    return {
        "top": TOP_EDGES,
        "held": [len(neurons) for neurons in chosen],
        "neurons": None if is_complete else encode_array(np.concatenate(chosen), np.uint32),
        **{
            key: encode_array(np.concatenate(values), node_dtype if key.endswith("nodes") else np.float32)
            for key, values in parts.items()
        },
    }


def _node_dtype(inspection: Inspection) -> IndexType:
    return index_dtype(max(size for entry in inspection.graphs for size in entry.graph.layer_sizes))


def _choose_what_fits(
    names: Sequence[str], sizes: Sequence[int], choices: Choices, edge_bytes: int, limit: int
) -> tuple[list[str], int]:
    """Return the scorers that fit, and the number of neurons per layer whose edges fit (`edge_bytes` for each neuron)."""
    n_neurons = sum(sizes)
    index_bytes = np.dtype(index_dtype(max(choices.sizes))).itemsize
    # All sizes are in bytes of base64, which takes four bytes for three.
    per_table = index_bytes * len(choices.multiples) * len(choices.amounts) * len(choices.sizes) * 4 / 3
    per_scorer = (4 + index_bytes) * n_neurons * 4 / 3 + per_table
    per_neuron = edge_bytes * 4 / 3
    # The first scorer, three facts of each neuron, and the table of local pruning are always on the page.
    left = limit - per_scorer - 12 * n_neurons * 4 / 3 - per_table
    # If the page holds the edges of some neurons only, it also holds the uint32 indices of these neurons.
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
