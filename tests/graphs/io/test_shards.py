"""Weights on disk are mapped, not copied, and ranked without memory of their own."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from graphs import GraphError, LayeredGraph, weighted_pagerank
from graphs.io.shards import open_tensors
from tests.graphs.cases import assert_layers_equal, random_case

LINUX = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")


def write(path: Path, **tensors: torch.Tensor) -> Path:
    save_file(tensors, path)
    return path


def test_a_graph_of_shards_ranks_as_the_graph_in_memory(tmp_path: Path) -> None:
    case = random_case(1, (8, 12, 8))
    for k, weight in enumerate(case.weights):
        write(tmp_path / f"model-{k}.safetensors", **{f"w{k}": torch.tensor(weight)})
    tensors = open_tensors(tmp_path)
    assert list(tensors) == ["w0", "w1"]
    graph = LayeredGraph.from_weights([tensors["w0"], tensors["w1"]], case.inputs, case.activations, check_finite=False)
    assert_layers_equal(weighted_pagerank(graph).scores, weighted_pagerank(case.graph()).scores)


def test_one_file_and_a_list_of_files(tmp_path: Path) -> None:
    first = write(tmp_path / "a.safetensors", a=torch.ones(2))
    second = write(tmp_path / "b.safetensors", b=torch.zeros(2))
    assert list(open_tensors(first)) == ["a"]
    assert set(open_tensors([first, str(second)])) == {"a", "b"}


@LINUX
def test_tensors_are_mapped(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", a=torch.ones(1 << 20, dtype=torch.bfloat16))
    tensor = open_tensors(path)["a"]
    assert tensor.dtype == torch.bfloat16
    regions = [
        tuple(int(end, 16) for end in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith("a.safetensors")
    ]
    assert any(start <= tensor.data_ptr() < stop for start, stop in regions)


@pytest.mark.slow
@LINUX
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ranking_needs_no_memory_for_the_weights(tmp_path: Path, dtype: str) -> None:
    """200 MB of weights against anonymous memory, in a process of its own."""
    kind = getattr(torch, dtype)
    rows = 200_000_000 // (2048 * kind.itemsize) // 2
    write(tmp_path / "up.safetensors", up=torch.ones((rows, 2048), dtype=kind))
    write(tmp_path / "down.safetensors", down=torch.ones((2048, rows), dtype=kind))
    code = f"""
import numpy as np, torch
from graphs import LayeredGraph, weighted_pagerank
from graphs.io.shards import open_tensors
own = lambda: next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("RssAnon")) / 1e3
warm = LayeredGraph.from_weights([torch.ones((600, 600), dtype=torch.{dtype})], np.ones(600), [np.ones(600)])
weighted_pagerank(warm)
before = own()
tensors = open_tensors({str(tmp_path)!r})
graph = LayeredGraph.from_weights([tensors["up"], tensors["down"]], np.ones(2048), [np.ones({rows}), np.ones(2048)],
                                  check_finite=False)
result = weighted_pagerank(graph)
assert abs(result.scores[2] - 1 / 2048).max() < 1e-12
print(own() - before)
"""
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert outcome.returncode == 0, outcome.stderr
    assert float(outcome.stdout) < 20.0


def test_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=r"no file or directory .*nowhere; expected safetensors"):
        open_tensors(tmp_path / "nowhere")
    with pytest.raises(GraphError, match=r"no \*.safetensors file in"):
        open_tensors(tmp_path)
    with pytest.raises(GraphError, match="at least one safetensors file, got none"):
        open_tensors([])
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    with pytest.raises(GraphError, match=r"bad.safetensors cannot be read .*; expected a safetensors file"):
        open_tensors(tmp_path)


def test_two_shards_with_one_name_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors", w=torch.ones(2))
    write(tmp_path / "b.safetensors", w=torch.ones(2))
    with pytest.raises(GraphError, match=r"b.safetensors and .*a.safetensors both hold a tensor 'w'"):
        open_tensors(tmp_path)


def test_unchecked_nan_on_disk_is_found_by_the_rank(tmp_path: Path) -> None:
    weight = torch.ones(4, 4)
    weight[1, 2] = torch.nan
    tensors = open_tensors(write(tmp_path / "a.safetensors", w=weight))
    graph = LayeredGraph.from_weights([tensors["w"]], np.ones(4), [np.ones(4)], check_finite=False)
    with pytest.raises(GraphError, match="NaN or Inf"):
        weighted_pagerank(graph)
