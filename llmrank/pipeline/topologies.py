"""The pipelines. They differ in how they join the graphs of FFNs: not at all, in a chain, or along the residual stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

from llmrank.calibration.attention import find_attentions
from llmrank.calibration.statistics import FFNStatistics
from llmrank.errors import OptionError
from llmrank.models import FFNs
from llmrank.pipeline.base_pipeline import BasePipeline
from llmrank.score.model_graph import ModelGraph, Topology, build_graphs, check_beta

__all__ = ["ChainedFFNPipeline", "IsolatedFFNPipeline", "ResidualFFNPipeline"]


class IsolatedFFNPipeline(BasePipeline):
    """Every FFN is a graph of its own. See :class:`BasePipeline`."""

    topology: ClassVar[Topology] = "isolated"


class ChainedFFNPipeline(BasePipeline):
    """Consecutive FFNs of an encoder or decoder are one graph: the output layer of one is the input layer of the next.

    Where the sizes of two consecutive FFNs do not fit, another graph begins. See :class:`BasePipeline`.
    """

    topology: ClassVar[Topology] = "chained"


class ResidualFFNPipeline(BasePipeline):
    """Every FFN is a graph of its own, with the residual stream around it: skip edges lead past the FFN to the next one.

    Node j of the stream in front of an FFN passes a share beta of its importance to node j behind it. The rest of the importance
    behind the FFN comes from the FFN's own scores, see :func:`llmrank.score.rank_graphs.rank_graphs`. A `structure_dict` is
    refused. See :class:`BasePipeline`.

    Parameters
    ----------
    *args, **options
        As for :class:`BasePipeline`.
    beta : "measured" or float
        Share of the importance that skip edges pass on, 0..1. If it is 0, and `attention` is False, PageRanks are those of the
        chained pipeline. "measured" computes the share for each block on the calibration tokens, as a / (a + b), where a sums the
        norms of the hidden states that enter the block, and b the norms of what the block adds
        (:class:`llmrank.calibration.residual.SkipSums`). If a block has several graphs, this share is the product of their betas.
    attention : bool
        Whether the value and output maps of every attention are edges too. They are in a graph of their own in front of the graph
        of the FFN, see :func:`llmrank.calibration.attention.find_attentions`.
    """

    topology: ClassVar[Topology] = "residual"

    def __init__(
        self, *args: Any, beta: float | Literal["measured"] = "measured", attention: bool = False, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        if self.structure_dict is not None:
            raise OptionError(
                "structure_dict lists Linears, and a residual stream skips whole FFNs; leave it out, or use the chained or the "
                "isolated pipeline"
            )
        if attention and self.calibration.ranking is not None:
            raise OptionError(
                "a ranking holds no statistics of attentions; leave attention=true out, or calibrate on text (llmrank prune)"
            )
        self.beta = None if beta == "measured" else check_beta(beta)
        self.attention = attention

    def find(self) -> FFNs:
        """See :meth:`BasePipeline.find`; attentions that cannot be edges are refused."""
        ffns = super().find()
        self.statistics_options(ffns)  # raises an error for such attentions
        return ffns

    def statistics_options(self, ffns: FFNs) -> dict[str, Any]:
        """Return the options of the calibration that measure betas and attentions, if these are needed."""
        attentions = find_attentions(self.model, ffns) if self.attention else None
        return {"skips": self.beta is None, "attentions": attentions}

    def build_graphs(self, ffns: FFNs, statistics: Sequence[FFNStatistics]) -> tuple[ModelGraph, ...]:
        """Build the graphs, in the order of the stream."""
        if not self.attention:
            statistics = [replace(entry, attention=None) for entry in statistics]
        return build_graphs(ffns, statistics, self.topology, self.beta)

    def parameters(self) -> dict[str, Any]:
        """Return the beta of every graph, and whether attentions are edges."""
        return {"beta": [entry.skip for entry in self.model_graphs], "attention": self.attention}
