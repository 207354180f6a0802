"""Graphs for Neuronpedia, a web page on which people explore what the parts of language models do.

Its viewer shows attribution graphs: features at the tokens of a prompt. Here a node of the graph is a feature, and all of them
stand at one token, because a rank is of a whole text. Layer k of the graph is row Lk of the viewer, which has a row for each
block of the model, and two more. Format: version 1.0.0 of the schema on neuronpedia.org/graph/validator.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from itertools import accumulate, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphs.io.exchange.formats import Format
from graphs.io.exchange.viewing import digraph_to_view
from graphs.io.replacement import replace_file
from graphs.reduction.subgraphs import Subgraph
from graphs.solvers.result import RankResult
from graphs.structures.layered import LayeredGraph

if TYPE_CHECKING:
    import networkx

__all__ = ["write_neuronpedia"]

FORMAT = "neuronpedia"
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
    graph, max_edges
        As for :func:`graphs.io.exchange.markup.write_graphml`.
    path : path-like
        Replaced completely on success, not changed on failure. The same graph gives the same bytes. Neuronpedia names the graph
        after the model, this file, and a digest of the nodes and edges.
    rank : RankResult, optional
        As for :func:`graphs.io.exchange.markup.write_graphml`. The influence of a node is the share of the written scores of its
        layer that it and the nodes with higher scores hold. The viewer can hide the nodes of high influence: those of low scores.
    model : str
        Name of the model at Neuronpedia, such as ``gemma-2-2b``: it takes uploads for the models that it knows. Of a path, the
        last part counts. Other characters than letters, digits, ``_``, ``.`` and ``-`` become hyphens.

    Raises
    ------
    GraphError
        What is to be written is no graph; it has too many edges, a rank of another graph, or NaN or Inf in its weights or
        scores; the directory does not exist, or the path is that of something that is not a file.
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
    content: dict[str, Any] = {
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
    digest = hashlib.blake2s(json.dumps(content).encode("ascii"), digest_size=4).hexdigest()
    stem = Path(path).name.removesuffix(".json").removesuffix(f".{FORMAT}")
    content["metadata"] = {
        "slug": UNNAMEABLE.sub("-", f"{name}-{stem}-{digest}"),
        "scan": name,
        "schema_version": 1,
        "prompt": TEXT,
        "prompt_tokens": [TEXT],
        "info": {"description": "Layers of a model as a weighted digraph, with the influence of nodes by their rank."},
        # Without a threshold, the viewer does not let its reader choose one. With this one it shows all nodes.
        **({"node_threshold": 1.0} if influences else {}),
    }
    content["qParams"] = {"linkType": "both", "pinnedIds": [], "supernodes": [], "clickedId": ""}
    with replace_file(path) as partial:
        partial.write_text(json.dumps(content, allow_nan=False), encoding="utf-8")


def _influences(digraph: networkx.DiGraph) -> dict[tuple[int, int], float]:
    """Return the influence of every node, see :func:`write_neuronpedia`; an empty dict if there are no scores."""
    scores = sorted(digraph.nodes(data="score"), key=lambda pair: (pair[0][0], -(pair[1] or 0.0)))
    found: dict[tuple[int, int], float] = {}
    for _, nodes in groupby(scores, key=lambda pair: pair[0][0]):
        layer = [(node, score) for node, score in nodes if score is not None]
        sums = [*accumulate(score for _, score in layer)]
        found |= {node: part / (sums[-1] or 1.0) for (node, _), part in zip(layer, sums, strict=True)}
    return found


FORMATS = (
    Format(
        FORMAT,
        lambda graph, stem, rank, model: write_neuronpedia(graph, f"{stem}.{FORMAT}.json", rank, model),
        any_size=False,
    ),
)
