"""Pruners: from importance to keep masks, under a budget."""

from .amounts import check_amount, global_count, local_count, protected_names, round_width
from .base_pruner import BasePruner
from .global_pruner import GlobalPruner
from .least_loss_pruner import LeastLossPruner
from .local_pruner import LocalPruner
from .records.layer_record import LayerRecord, record_of_size
from .records.order import ascending_positions, keep_highest
from .sensitivity_pruner import SensitivityPruner, sensitivity_counts

__all__ = [
    "BasePruner",
    "GlobalPruner",
    "LayerRecord",
    "LeastLossPruner",
    "LocalPruner",
    "SensitivityPruner",
    "ascending_positions",
    "check_amount",
    "global_count",
    "keep_highest",
    "local_count",
    "protected_names",
    "record_of_size",
    "round_width",
    "sensitivity_counts",
]
