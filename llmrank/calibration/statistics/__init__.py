"""Statistics of the activations at every layer of the FFNs, in memory and in files."""

from llmrank.calibration.statistics.ffn_statistics import (
    AttentionStatistics,
    FFNStatistics,
    LayerStatistics,
    MixtureStatistics,
    RoutingStatistics,
)

__all__ = [
    "AttentionStatistics",
    "FFNStatistics",
    "LayerStatistics",
    "MixtureStatistics",
    "RoutingStatistics",
]
