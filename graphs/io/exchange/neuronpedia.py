"""Graphs for Neuronpedia, a web page on which people explore what the parts of language models do.

Its viewer shows attribution graphs: features at the tokens of a prompt. Here a node of the graph is a feature, and all of them
stand at one token, because a rank is of a whole text. Format: version 1.0.0 of the schema on neuronpedia.org/graph/validator.
"""

from __future__ import annotations

import json
import os
import re
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from graphs.io.exchange.formats import Format
from graphs.io.exchange.viewing import digraph_to_view
from graphs.io.replacement import replace_file
from graphs.reduction.subgraphs import Subgraph
from graphs.solvers.result import RankResult
from graphs.structures.layered import LayeredGraph

if TYPE_CHECKING:
    import networkx

__all__ = ["write_neuronpedia"]

# The text at which all nodes stand.
TEXT = "calibration text"
# Neuronpedia refuses other characters in the names of a model and of a graph.
UNNAMEABLE = re.compile("[^a-zA-Z0-9_.-]+")


def write_neuronpedia(
    graph: LayeredGraph | Subgraph,
    path: str | os.PathLike[str],
    rank: RankResult | None = None,
    model: str = "model",
    max_edges: int = 200_000,
) -> None:
    """Write a graph or subgraph as a JSON file that Neuronpedia shows.

    Parameters
    ----------
    graph : LayeredGraph or Subgraph
        The nodes of a subgraph keep their layers and indices in the original graph.
    path : path-like
        Replaced completely on success, not changed on failure. The same graph gives the same bytes. Neuronpedia names the graph
        after the model and this file.
    rank : RankResult, optional
        A rank of the graph, or of the subgraph's original graph, with one score a node. By default the scores that a subgraph
        holds are written, and none for a graph. The influence of a node in the viewer is the share of all written scores that
        the nodes down to this one hold, highest first, so that the viewer can hide the lowest ones.
    model : str
        Name of the model at Neuronpedia, such as ``gemma-2-2b``: it takes uploads for the models that it knows. Of a path, the
        last part counts. Other characters than letters, digits, ``_``, ``.`` and ``-`` become hyphens.
    max_edges : int
        Maximum number of edges; more raise an error, because viewers cannot draw so many.

    Raises
    ------
    GraphError
        Too many edges, a rank of another graph, NaN or Inf in the weights, a directory that does not exist, or a path of
        something that is not a file.
    OSError
        The disk is full, or the system refuses.

    Examples
    --------
    >>> import tempfile
    >>> graph = LayeredGraph.from_weights([[[0.1, 2.0]]], [1, 1], [[1]])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_neuronpedia(graph, f"{folder}/graph.json", model="google/gemma-2-2b")
    ...     with open(f"{folder}/graph.json") as file:
    ...         json.load(file)["links"]
    [{'source': '0_0_0', 'target': '1_0_0', 'weight': 0.1}, {'source': '0_1_0', 'target': '1_0_0', 'weight': 2.0}]
    """
    digraph = digraph_to_view(graph, rank, max_edges)
    name = UNNAMEABLE.sub("-", model.rstrip("/").rpartition("/")[2]) or "model"
    influences = _influences(digraph)
    content = {
        "metadata": {
            "slug": UNNAMEABLE.sub("-", f"{name}-{Path(path).name.partition('.')[0]}"),
            "scan": name,
            "schema_version": 1,
            "prompt": TEXT,
            "prompt_tokens": [TEXT],
            "info": {"description": "Layers of a model as a weighted digraph; influence is by rank, highest first."},
        },
        "qParams": {"linkType": "both", "pinnedIds": [], "supernodes": [], "clickedId": ""},
        "nodes": [
            {
                "node_id": f"{layer}_{index}_0",
                "jsNodeId": f"{layer}_{index}-0",
                # One number for both, by the pairing function of Cantor.
                "feature": (layer + index) * (layer + index + 1) // 2 + index,
                "layer": str(layer),
                "ctx_idx": 0,
                "feature_type": "neuron",
                "clerp": f"{facts['name']} {index}" + (f", score {facts['score']:.3g}" if "score" in facts else ""),
                "activation": facts["activation"],
                "influence": influences.get((layer, index)),
            }
            for (layer, index), facts in digraph.nodes(data=True)
        ],
        "links": [
            {"source": "{}_{}_0".format(*source), "target": "{}_{}_0".format(*target), "weight": weight}
            for source, target, weight in digraph.edges(data="weight")
        ],
    }
    with replace_file(path) as partial:
        partial.write_text(json.dumps(content, allow_nan=False), encoding="utf-8")


def _influences(digraph: networkx.DiGraph) -> dict[tuple[int, int], float]:
    """Return for every node the share of all scores that the nodes down to it hold; nothing without scores."""
    scores = sorted(digraph.nodes(data="score", default=0.0), key=lambda pair: -pair[1])
    total = sum(score for _, score in scores)
    if not total > 0:
        return {}
    sums = accumulate(score for _, score in scores)
    return {node: min(part / total, 1.0) for (node, _), part in zip(scores, sums, strict=True)}


FORMATS = (
    Format(
        "neuronpedia",
        lambda graph, stem, rank, model: write_neuronpedia(graph, f"{stem}.neuronpedia.json", rank, model),
        any_size=False,
    ),
)
