"""Choose the keep masks of ranked graphs, of neurons and of experts, and choose one anew during a repair."""

from llmrank.prune.selection.choose import check_both, choose_masks, prunes_jointly
from llmrank.prune.selection.reselection import Reselection

__all__ = ["Reselection", "check_both", "choose_masks", "prunes_jointly"]
