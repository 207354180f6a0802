"""The meanings of neurons and the changes of losses, as the page holds them."""

from __future__ import annotations

from dataclasses import asdict
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from llmrank.evaluation.token_losses import LossChanges
from llmrank.evaluation.token_texts import TOKENS_AFTER, TOKENS_BEFORE
from llmrank.inspection.inspect_model import Inspection
from llmrank.inspection.meaning.logit_lens import LensTokens
from llmrank.inspection.meaning.meanings import Meanings
from llmrank.inspection.page.arrays import encode_array, index_dtype

__all__ = ["MEANINGS_LIMIT", "changes_data", "meanings_data"]

# Largest size of the arrays with an entry for each neuron, in bytes of base64.
MEANINGS_LIMIT = 12_000_000
# Stands for no token: at padding, and for the promoted and demoted tokens of a neuron without a logit lens.
NO_TOKEN = -1


def meanings_data(
    inspection: Inspection, meanings: Meanings, limit: int = MEANINGS_LIMIT
) -> tuple[dict[str, Any], str | None]:
    """Collect the meanings of the neurons, ready for JSON.

    Parameters
    ----------
    inspection : Inspection
    meanings : Meanings
        The meanings of all neurons of the inspection.
    limit : int
        Approximate largest size of the arrays with an entry for each neuron, in bytes of base64. If they are larger, the page
        holds only the neurons with the highest scores of each layer.

    Returns
    -------
    data : dict
        ``tokens`` lists the texts of tokens; the first is empty and stands for no token. ``text`` holds the calibration text as
        indices into ``tokens``, in sequences of ``length`` tokens; ``context`` tells how many of them are shown before and after
        one. For each neuron that the page holds there are k ``activations`` (0 if the neuron has fewer contexts), their
        ``positions`` in the text, and k ``promoted`` and k ``demoted`` tokens.
    note : str or None
        What is left out, as a sentence.
    """
    sequences = meanings.top.sequences
    k = next(iter(meanings.top.activations.values())).shape[1]
    per_neuron = k * 16 * 4 / 3  # four arrays of at most 4 bytes a number; base64 takes four bytes for three
    n_layers, largest = len(inspection.layers), max(layer.size for layer in inspection.layers.values())
    fits = limit >= per_neuron * sum(layer.size for layer in inspection.layers.values())
    # If some neurons are left out, the page also holds the index of each neuron that is not, in about 6 bytes of base64.
    per_layer = largest if fits else max(1, int(limit / (per_neuron + 6) / n_layers))
    held, parts = [], []
    for name, layer in inspection.layers.items():
        neurons = np.sort(np.argsort(-inspection.main.importance[name], kind="stable")[:per_layer])
        lens = {part.name: meanings.lens.get(part.name) for part in layer.layers}
        joined = (
            layer.join(meanings.top.activations),
            layer.join(meanings.top.positions),
            layer.join({part.name: _tokens(lens[part.name], "promoted", (part.size, k)) for part in layer.layers}),
            layer.join({part.name: _tokens(lens[part.name], "demoted", (part.size, k)) for part in layer.layers}),
        )
        held.append(neurons)
        parts.append([each[neurons] for each in joined])
    activations, positions, promoted, demoted = (np.concatenate(part) for part in zip(*parts, strict=True))
    text = torch.where(sequences.mask, sequences.ids, NO_TOKEN).flatten().numpy()
    used = np.unique(np.concatenate([text, promoted.ravel(), demoted.ravel(), [NO_TOKEN]]))
    token_dtype = index_dtype(len(used))

    def indices(tokens: npt.NDArray[Any]) -> dict[str, str]:
        return encode_array(np.searchsorted(used, tokens), token_dtype)

    data = {
        "k": k,
        "length": sequences.length,
        "context": [TOKENS_BEFORE, TOKENS_AFTER],
        "source": sequences.source,
        "without_lens": meanings.without_lens,
        "tokens": ["", *(meanings.texts[int(token)] for token in used[1:])],
        "text": indices(text),
        "held": [len(neurons) for neurons in held],
        "neurons": None if per_layer >= largest else encode_array(np.concatenate(held), np.uint32),
        "activations": encode_array(activations, np.float32),
        "positions": encode_array(positions.clip(min=0), index_dtype(len(text))),
        "promoted": indices(promoted),
        "demoted": indices(demoted),
    }
    note = None
    if per_layer < largest:
        note = f"To keep the page small, it has only the contexts of the {per_layer:,} highest neurons of each layer."
    return data, note


def _tokens(lens: LensTokens | None, side: str, shape: tuple[int, int]) -> torch.Tensor:
    """Return the tokens that the neurons of a prunable layer promote or demote."""
    return torch.full(shape, NO_TOKEN) if lens is None else getattr(lens, side)


def changes_data(changes: LossChanges) -> tuple[dict[str, Any] | None, str | None]:
    """Return the changes of the losses, ready for JSON, or None with a note that says why they are left out.

    If the losses of all tokens do not change in total, the share of each kind of tokens in the change is None.
    """
    if not isfinite(changes.all.change.value):
        return (
            None,
            "The losses of the masked model are not finite, so the page does not show which tokens lose the most.",
        )
    content = asdict(changes)
    for kinds in ({"": content["all"]}, *content["kinds"].values()):
        for kind in kinds.values():
            if not isfinite(kind["share_of_change"]):
                kind["share_of_change"] = None
    return content, None
