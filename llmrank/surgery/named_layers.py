"""Find the layers of a model that masks name, when the masks come without the run that has made them."""

from __future__ import annotations

from torch import nn

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
        The FFNs, attentions or blocks cannot be found.
    """
    ffns = find_ffns(model)
    layers = ffns.layers
    found = ffns if masks.keys() <= layers.keys() else HeadUnits.find(model, ffns)
    # Masks of heads alone name no FFN.
    named = FFNs(ffn for ffn in found if any(layer.name in masks for layer in ffn.prunable.values())) or ffns
    empty = [name for name, layer in layers.items() if name in masks and not bool(masks[name].any())]
    return BlockUnits.find(model, named) if any(layers[name].mixture is None for name in empty) else named
