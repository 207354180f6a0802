"""Importing the package is cheap and has no side effects."""

import subprocess
import sys
import textwrap

import pytest


def modules_after(statements: str) -> set[str]:
    code = f"import sys\n{statements}\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stderr == ""
    return set(run.stdout.split())


@pytest.mark.parametrize(
    "statements",
    [
        "import graphs",
        "import graphs.io.convert",
        # A rank on numpy loads them neither.
        "import graphs; graphs.weighted_pagerank(graphs.LayeredGraph.from_weights([[[1.0]]], [1], [[1]]))",
    ],
)
def test_importing_graphs_loads_none_of_the_heavy_libraries(statements: str) -> None:
    loaded = modules_after(statements)
    assert "graphs" in loaded
    assert not loaded & {"torch", "networkx", "matplotlib", "transformers", "llmrank", "pandas"}


def test_torch_sparse_tensors_raise_no_warning() -> None:
    # torch warns about CSR tensors once per process, so the test needs a new one.
    statements = """
        import torch, warnings
        from graphs import LayeredGraph, weighted_pagerank
        weight = torch.eye(2).to_sparse()
        warnings.simplefilter("error")
        graph = LayeredGraph.from_weights([weight], [1, 1], [[1, 1]])
        for backend in ("scipy", "torch", "dense"):
            weighted_pagerank(graph, theta=0.5, backend=backend)
        graph.to_torch()
    """
    assert "torch" in modules_after(textwrap.dedent(statements))


def test_the_public_names_are_there() -> None:
    import graphs

    assert all(hasattr(graphs, name) for name in graphs.__all__)
    assert list(graphs.__all__) == sorted(graphs.__all__)
