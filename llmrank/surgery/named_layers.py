"""Find the layers of a model that masks name, when the masks come without the run that has made them."""

from __future__ import annotations

from torch import nn

from llmrank.models import FFNs, find_ffns
from llmrank.models.finding.blocks import with_blocks
from llmrank.models.finding.heads import find_heads
from llmrank.prune.masks import Masks

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
    attentions = find_heads(model, ffns) if not masks.keys() <= layers.keys() else {}
    # The attention of a block stands in front of its FFNs. Masks of heads alone name no FFN.
    parts = (part for ffn in ffns for part in (attentions.get(ffn.name), ffn) if part is not None)
    named = FFNs(part for part in parts if any(layer.name in masks for layer in part.prunable.values())) or ffns
    empty = [name for name, layer in layers.items() if name in masks and not bool(masks[name].any())]
    return with_blocks(model, named) if any(layers[name].mixture is None for name in empty) else named
