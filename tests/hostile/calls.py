"""Bad values for the parameters of promised functions and components: an error of a promised type, and nothing has changed."""

from __future__ import annotations

import inspect
import os
import random
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import torch
from scipy import sparse

import graphs
import llmrank
from llmrank.pipeline import CalibrationText, EvaluationText
from llmrank.pipeline.registry import PRUNERS, REPAIRS, SCORERS
from tests.hostile.harness import SAID, Attack, Failed, refusal
from tests.llmrank.tiny_models import Snapshot, text, tiny_llama, token_ids, tokenizer

__all__ = ["CALLS"]

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, -(10**30), 0.0, 0.5, -0.5, 1.0, 1e-300, 1e300),
    *(float("nan"), float("inf"), 1j, "", " ", "x", "auto", "none", "a\nb", "\udc80", "é" * 300, "cuda:99", "0.5", "1"),
    *(b"", b"x", [], (), {}, set(), [None], [0.5, "x"], ["x"], {"x": 1}, {0: float("nan")}, [[1.0], [2.0, 3.0]]),
    *(object(), object, len, Path("/dev/null"), Path("/nonexistent/x"), range(3), iter(())),
    *(np.float32(0.5), np.int64(3), np.array(0.5), np.array([]), np.array([np.nan]), np.zeros((2, 2)), np.array(["x"])),
    *(torch.tensor(0.5), torch.tensor([]), torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.long), torch.float16),
    *(sparse.csr_array((3, 3)), nx.DiGraph(), torch.nn.Linear(2, 2)),
)
# What connects to a network, calls what it is given, or runs for minutes.
NEVER = {"push_to_hub", "private", "progress", "callback", "track", "tasks", "speed", "heal", "trust_remote_code"}
# Whose truth value alone counts.
FLAGS = {"undoable", "resume", "check_finite", "transposed"}
# What Python itself says of something that is no path says what was expected and what came.
NO_PATH = re.compile(r"expected str, bytes or os.PathLike object, not |str (object )?or an os.PathLike object")


@dataclass(frozen=True)
class Call:
    """A function, what makes good arguments for it in a folder that may be written to, and what has its parameters."""

    function: Callable[..., Any]
    arguments: Callable[[Path], dict[str, Any]]
    like: Callable[..., Any] | None = None

    @property
    def parameters(self) -> list[str]:
        """The parameters that get bad values."""
        return [each for each in inspect.signature(self.like or self.function).parameters if each not in NEVER | FLAGS]


def pruned_by(kind: str, component: type, **options: Any) -> Any:
    """Make a component, and prune a tiny model by it."""
    settings = {"amount": 0.4, "calibration": token_ids(6, 16), "repair": None}
    made = {kind: component(**options)}
    if kind == "pruner":
        del settings["amount"]  # which the pruner has
    return llmrank.prune_model(tiny_llama(), None, undoable=True, **{**settings, **made})


def prepare(folder: Path) -> dict[str, Call]:
    """Write what good arguments name."""
    torch.set_num_threads(1)
    corpus, words = folder / "corpus.txt", tokenizer()
    corpus.write_text(text(400), encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = llmrank.save(folder / "model", tiny_llama(), words)
        pruned = llmrank.prune_model(tiny_llama(), None, calibration=token_ids(6, 16), repair=None)
    pruned.save(folder / "pruned")
    pruned.masks.save(folder / "masks.safetensors")
    graph = graphs.LayeredGraph.from_weights(
        [[[1.0, 2.0], [0.5, 0.0], [3.0, 1.0]], [[1.0, 0.5, 0.25]]], [1, 2], [[1, 1, 2], [3]]
    )
    rank = graphs.pagerank(graph)
    graphs.save_graph(graph, folder / "graph.safetensors")
    graphs.save_rank(rank, folder / "rank.safetensors")
    short = {"sequence_length": 16, "batch_size": 1}
    pruning = {"amount": 0.4, "calibration": token_ids(6, 16), "samples": 4, **short, "undoable": True}
    healing = {"text": token_ids(12, 16), "settings": 64, **short}
    layered: dict[str, Any] = {"graph": graph}
    weights = {"weights": [[[1.0, 2.0]]], "inputs": [1.0, 2.0], "activations": [[1.0]]}
    digraph = graphs.residual_graph(
        graphs.LayeredGraph.from_weights([[[1.0, 2.0]], [[1.0], [3.0]]], [1, 1], [[1], [1, 1]])
    )
    masks, layered_rank = pruned.masks, {"layer": 1}
    components = {
        f"{registry.kind} {name}": Call(
            partial(pruned_by, registry.kind, registry.find(name)), lambda _: {}, registry.find(name)
        )
        for registry in (SCORERS, PRUNERS, REPAIRS)
        for name in registry.names()
        if registry.fields(name)
    }
    return {
        **components,
        "CalibrationText": Call(CalibrationText, lambda _: {"source": corpus}),
        "EvaluationText": Call(EvaluationText, lambda _: {"source": corpus}),
        "Distillation": Call(llmrank.healing.Distillation, lambda _: {"tokens": 64}),
        "IsolatedFFNPipeline": Call(
            lambda **options: llmrank.IsolatedFFNPipeline(**options).run(),
            lambda _: {"model": tiny_llama(), "tokenizer": None, "calibration": token_ids(6, 16), "undoable": True},
            llmrank.IsolatedFFNPipeline,
        ),
        "Masks": Call(llmrank.Masks, lambda _: {"keep": dict(masks)}),
        "Masks.save": Call(masks.save, lambda place: {"path": place / "x.safetensors"}),
        "Masks.removed": Call(masks.removed, lambda _: {"name": next(iter(masks))}),
        "Report.save": Call(pruned.report.save, lambda place: {"path": place / "x.json"}),
        "PrunedModel.save": Call(pruned.save, lambda place: {"directory": place / "out"}),
        "LayeredGraph": Call(
            graphs.LayeredGraph,
            lambda _: {"blocks": graph.blocks, "activations": graph.activations, "names": graph.names},
        ),
        "LayeredGraph.block": Call(graph.block, lambda _: {"layer": 0}),
        "LayeredGraph.to_torch": Call(graph.to_torch, lambda _: {}),
        "LayeredGraph.with_activations": Call(
            graph.with_activations, lambda _: {"layer": 1, "activations": [1.0, 1.0, 2.0]}
        ),
        "RankResult.top": Call(rank.top, lambda _: layered_rank),
        "prune_model": Call(llmrank.prune_model, lambda _: {"model": tiny_llama(), **pruning}),
        "heal": Call(
            llmrank.heal,
            lambda _: {"model": llmrank.load(folder / "pruned").model, "dense": tiny_llama(), **healing},
        ),
        "predict": Call(
            llmrank.predict,
            lambda place: {
                "dense": tiny_llama(),
                "tokenizer": None,
                "output": place / "x.safetensors",
                "text": token_ids(12, 16),
                "tokens": 64,
                **short,
            },
        ),
        "sweep": Call(
            llmrank.sweep,
            lambda place: {"models": model, "output": place / "out", "calibration": corpus, "samples": 2, **short},
        ),
        "load": Call(llmrank.load, lambda _: {"source": folder / "pruned"}),
        "save": Call(
            llmrank.save, lambda place: {"directory": place / "out", "model": tiny_llama(), "tokenizer": words}
        ),
        "Masks.load": Call(llmrank.Masks.load, lambda _: {"path": folder / "masks.safetensors"}),
        "SweepResult.load": Call(llmrank.SweepResult.load, lambda _: {"directory": folder}),
        "pagerank": Call(graphs.pagerank, lambda _: {**layered, "max_iter": 100}),
        "weighted_pagerank": Call(graphs.weighted_pagerank, lambda _: layered),
        "modified_pagerank": Call(graphs.modified_pagerank, lambda _: layered),
        "from_weights": Call(graphs.LayeredGraph.from_weights, lambda _: weights),
        "residual_graph": Call(graphs.residual_graph, lambda _: layered),
        "bidirectional_graph": Call(graphs.bidirectional_graph, lambda _: layered),
        "sparsify": Call(graphs.sparsify, lambda _: {**layered, "top_k": 2}),
        "save_graph": Call(graphs.save_graph, lambda place: {**layered, "path": place / "x.safetensors"}),
        "load_graph": Call(graphs.load_graph, lambda _: {"path": folder / "graph.safetensors"}),
        "save_rank": Call(graphs.save_rank, lambda place: {"result": rank, "path": place / "x.safetensors"}),
        "load_rank": Call(graphs.load_rank, lambda _: {"path": folder / "rank.safetensors"}),
        "BlockDigraph": Call(
            graphs.BlockDigraph,
            lambda _: {"layer_sizes": (2, 1, 2), "edge_blocks": digraph.edge_blocks, "names": digraph.names},
        ),
        "EdgeBlock": Call(
            graphs.EdgeBlock, lambda _: {"source": 0, "target": 2, "block": digraph.edge_blocks[0].block}
        ),
        "KeepHighest": Call(graphs.KeepHighest, lambda _: {"counts": {0: 1}}),
    }


def case(calls: dict[str, Call], rng: random.Random, folder: Path) -> str:
    """Give a function one or two bad values."""
    name = rng.choice(list(calls))
    call = calls[name]
    arguments = call.arguments(folder)
    model = arguments.get("model")
    snapshot = Snapshot(model) if isinstance(model, torch.nn.Module) else None
    bad = {rng.choice(call.parameters): rng.choice(VALUES) for _ in range(rng.choice([1, 1, 2]))}
    what = f"{name}({', '.join(f'{key}={str(value)[:100]!r} ({type(value).__name__})' for key, value in bad.items())})"
    here = Path.cwd()
    os.chdir(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = call.function(**{**arguments, **bad})
    except SAID as error:
        outcome = refusal(error)
    except Exception as error:
        if isinstance(error, TypeError) and NO_PATH.search(str(error)):
            return "refused (TypeError: no path)"
        raise Failed(f"{what}: {type(error).__name__}: {error}") from error
    else:
        if snapshot is not None and hasattr(found, "undo"):
            found.undo()
        return "accepted"
    finally:
        os.chdir(here)
    if snapshot is not None and name != "save":
        try:
            snapshot.assert_restored()
        except AssertionError as changed:
            raise Failed(f"{what}: {outcome}, and the model has changed: {changed}") from changed
    # A sweep keeps the rows that failed, and why.
    left = [path.name for path in folder.iterdir() if name != "sweep"]
    if left:
        raise Failed(f"{what}: {outcome}, and left {left}")
    return outcome


CALLS = Attack("calls", "bad values for the parameters of promised functions", prepare, case)
