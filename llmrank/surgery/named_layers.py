"""Find the layers of a model that masks name, when the masks come without the run that has made them."""

from __future__ import annotations

from contextlib import suppress

from torch import nn

from llmrank.errors import LLMRankError
from llmrank.models import FFNs, find_ffns
from llmrank.prune.masks import Masks
from llmrank.prune.records.units import BlockUnits, HeadUnits

__all__ = ["ffns_of_masks"]


def ffns_of_masks(model: nn.Module, masks: Masks) -> FFNs:
    """Return the FFNs of a model, and what else these masks are of: attentions that they name, and blocks that they leave out.

    Parameters
    ----------
    model : nn.Module
    masks : Masks
        Of this model.

    Raises
    ------
    LLMRankError
        The FFNs, or blocks that masks leave out, cannot be found.
    """
    ffns = find_ffns(model)
    layers = ffns.layers
    found = ffns
    if not masks.keys() <= layers.keys():
        with suppress(LLMRankError):  # then they are the masks of another model, and their check says what is unknown
            found = HeadUnits.find(model, ffns)
        if not masks.keys() & layers.keys():  # of heads alone
            found = FFNs(found.attentions) or ffns
    empty = [name for name, layer in layers.items() if name in masks and not bool(masks[name].any())]
    return BlockUnits.find(model, found) if any(layers[name].mixture is None for name in empty) else found
