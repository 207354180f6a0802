"""Scores that round-off has moved against the masks that they gave, to find the decisions that round-off could change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from graphs import RankResult
from llmrank.score.model_graph import ModelGraph

__all__ = ["ROUND_OFF", "moved_against"]

# How far a score may differ between two runs, as a share of it, by the dtype of the model. In float32 it is several times the
# largest difference that was measured between numbers of threads, batch sizes and processes, see
# benchmarks/results/reproducibility.md; in other dtypes it is the rounding of a few values.
ROUND_OFF = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-2}


def moved_against(
    graphs: Sequence[ModelGraph], ranks: Sequence[RankResult], masks: Mapping[str, torch.Tensor], share: float
) -> tuple[RankResult, ...]:
    """Return the ranks with lower scores of kept neurons and higher scores of removed ones.

    No other change of scores by the same share at most brings a kept and a removed neuron of a layer as near to each other.

    Parameters
    ----------
    graphs : sequence of ModelGraph
    ranks : sequence of RankResult
        One for each graph.
    masks : mapping from str to (n,) bool tensor
        The keep mask of every prunable layer.
    share : float
        By what share of it each score changes.
    """
    moved = []
    for graph, ranked in zip(graphs, ranks, strict=True):
        scores = [layer.astype(np.float64) for layer in ranked.scores]
        for place in graph.prunable:
            keep = masks[place.layer.name].numpy()
            scores[place.position][place.nodes] *= np.where(keep, 1.0 - share, 1.0 + share)
        moved.append(replace(ranked, scores=tuple(scores)))
    return tuple(moved)
