"""Choose which neurons, experts and heads of ranked graphs are kept, and during a repair choose again within a layer."""

from llmrank.prune.selection.choose import check_several, choose_masks, prunes_jointly
from llmrank.prune.selection.close_decisions import ROUND_OFF, moved_against
from llmrank.prune.selection.reselection import Reselection

__all__ = ["ROUND_OFF", "Reselection", "check_several", "choose_masks", "moved_against", "prunes_jointly"]
