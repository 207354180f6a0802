"""Exchange formats by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphs import weighted_pagerank
from graphs.io.exchange import exchange_formats
from graphs.reduction.subgraphs import top_subgraph
from tests.graphs.cases import random_case

GRAPH = random_case(1, (4, 3, 2)).graph()
FILES = {
    "csv": ["g.edges.csv", "g.nodes.csv"],
    "gexf": ["g.gexf"],
    "graphml": ["g.graphml"],
    "neuronpedia": ["g.neuronpedia.json"],
    "npz": ["g.npz"],
    "parquet": ["g.edges.parquet", "g.nodes.parquet"],
}


def test_every_format_is_found() -> None:
    assert sorted(exchange_formats()) == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_format_writes_its_files(name: str, tmp_path: Path) -> None:
    known = exchange_formats()[name]
    if known.package:
        pytest.importorskip(known.package)
    rank = weighted_pagerank(GRAPH)
    known.write(GRAPH if known.any_size else top_subgraph(GRAPH, rank, nodes=2), tmp_path / "g", rank, "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES[name]
