"""Pruners: from importance to keep masks, under a budget."""

from llmrank.prune.counts import check_amount, global_count, local_count, round_width
from llmrank.prune.local import LocalPruner
from llmrank.prune.order import ascending_positions, keep_highest
from llmrank.prune.protection import protected_names
from llmrank.prune.pruner import BasePruner
from llmrank.prune.records import LayerRecord, bare_record
from llmrank.prune.sparing import SensitivityPruner, sparing_counts
from llmrank.prune.together import GlobalPruner

__all__ = [
    "BasePruner",
    "GlobalPruner",
    "LayerRecord",
    "LocalPruner",
    "SensitivityPruner",
    "ascending_positions",
    "bare_record",
    "check_amount",
    "global_count",
    "keep_highest",
    "local_count",
    "protected_names",
    "round_width",
    "sparing_counts",
]
