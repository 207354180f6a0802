"""The two budgets that an inspection compares: local and global pruning by the same amount."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmrank.errors import OptionError
from llmrank.models import FFNs
from llmrank.prune import BasePruner, GlobalPruner, LayerRecord, LocalPruner, record_of_size
from llmrank.prune.records.units import Target, check_targets, units_of

__all__ = ["Budgets", "amount_label", "make_budgets", "reason_to_refuse"]


@dataclass(frozen=True, eq=False)
class Budgets:
    """The two budgets that an inspection compares, at one amount.

    Attributes
    ----------
    local : LocalPruner
    global_ : GlobalPruner
    refusals : mapping from str to str
        Why a budget (``local``, ``global``) refuses the amount for this model. A budget that accepts the amount has no entry.
    """

    local: LocalPruner
    global_: GlobalPruner
    refusals: Mapping[str, str]

    def accepting(self) -> dict[str, BasePruner]:
        """Return the pruners that accept the amount, by the name of their budget."""
        both: dict[str, BasePruner] = {"local": self.local, "global": self.global_}
        return {name: pruner for name, pruner in both.items() if name not in self.refusals}


def make_budgets(pruner: BasePruner, ffns: FFNs, *, jointly: bool, targets: Sequence[Target] = ("neurons",)) -> Budgets:
    """Make both budgets with the settings of a pruner, and check whether they accept its amount.

    Parameters
    ----------
    pruner : BasePruner
        Both budgets take over its `amount`, `min_keep` and `multiple_of`. The global budget also takes over `normalize` if this
        is a GlobalPruner.
    ffns : FFNs
    jointly : bool
        Whether the global budget is always shared by all FFNs. If not, the amount must also be possible for each FFN alone.
    targets : sequence of {"neurons", "experts", "heads"}
        What would be removed.

    Raises
    ------
    OptionError
        The pruner protects layers, or counts something else than neurons; the model has no experts to remove; or neurons and
        experts are to be removed by another amount than a share.
    """
    if pruner.protect or pruner.amount_of != "neurons":
        raise OptionError(
            "an inspection counts neurons of all layers, and does not support protect and amount_of; use them only for pruning"
        )
    if "blocks" in targets:
        raise OptionError("an inspection shows what is inside blocks; leave blocks out of the targets")
    check_targets(targets, ffns)
    if len(targets) > 1 and "heads" in targets:
        raise OptionError(
            f"an inspection shows heads by themselves; expected targets='heads' (--targets heads), or none of them, got "
            f"{','.join(targets)}"
        )
    settings = (pruner.amount, pruner.min_keep, pruner.multiple_of)
    local = LocalPruner(*settings)
    global_ = GlobalPruner(*settings, pruner.normalize if isinstance(pruner, GlobalPruner) else "auto")
    # Whether an amount is possible depends on sizes alone, so it can be checked before the calibration.
    by_ffn = [[record_of_size(layer.name, layer.size) for layer in ffn.prunable.values()] for ffn in ffns]
    # With both targets, an amount is possible if it is possible for neurons.
    units = units_of(ffns.layers.values(), targets[0] if len(targets) == 1 else "neurons")
    all_layers = [record_of_size(each.name, each.n_units, each) for each in units]
    groups = [all_layers] if jointly else [all_layers, *by_ffn]
    reasons = {"local": reason_to_refuse(local, groups), "global": reason_to_refuse(global_, groups)}
    return Budgets(local, global_, {name: reason for name, reason in reasons.items() if reason})


def reason_to_refuse(pruner: BasePruner, groups: Sequence[Sequence[LayerRecord]]) -> str:
    """Return why a pruner refuses its amount for one of the groups of layers, or an empty string."""
    try:
        for group in groups:
            pruner.check(group)
    except OptionError as error:
        return str(error)
    return ""


def amount_label(amount: float | int, targets: Sequence[Target] = ("neurons",)) -> str:
    """Return an amount as people write it.

    >>> amount_label(0.29), amount_label(1500), amount_label(1), amount_label(2, ["heads"])
    ('29 %', '1,500 neurons', '1 neuron', '2 groups of heads')
    """
    if isinstance(amount, int):
        many = "" if amount == 1 else "s"
        return f"{amount:,} {f'group{many} of heads' if targets[0] == 'heads' else targets[0][:-1] + many}"
    return f"{100 * amount:.6g} %"
