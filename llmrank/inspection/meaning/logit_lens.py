"""The logit lens: the tokens that a neuron promotes and demotes, read from its weights alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llmrank.errors import OptionError
from llmrank.inspection.meaning.final_norm import Norms, find_norms
from llmrank.models import FFN, FFNs, PrunableLayer
from llmrank.models.forward import is_decoder
from llmrank.progress import Progress, shown

__all__ = ["LensTokens", "logit_lens"]

# Number of neurons and of tokens whose logits are computed at once: 32 MiB of float32.
NEURONS_AT_ONCE, TOKENS_AT_ONCE = 1024, 8192


@dataclass(frozen=True, eq=False)
class LensTokens:
    """The tokens that the neurons of one layer promote and demote the most.

    Attributes
    ----------
    promoted, demoted : (n, k) int64 tensor
        Tokens; the strongest effect first.
    promoted_logits, demoted_logits : (n, k) float32 tensor
        The change of the tokens' logits for an activation of 1. It lacks the scale of the final norm, which depends on the text.
    """

    promoted: torch.Tensor
    promoted_logits: torch.Tensor
    demoted: torch.Tensor
    demoted_logits: torch.Tensor


@torch.no_grad()
def logit_lens(
    model: Any,
    ffns: FFNs,
    k: int = 5,
    neurons: Mapping[str, Sequence[int]] | None = None,
    tokens: torch.Tensor | None = None,
    progress: Progress | None = None,
) -> dict[str, LensTokens]:
    """Find the tokens that each neuron promotes and demotes on the direct path from the neuron to the logits.

    A neuron adds its activation times its column w of the output map to the residual stream. The head U reads the stream behind
    the final norm, whose gain is g. So the neuron moves the logits along ``U (g * w)`` [1]_ [2]_. If the norm is a layer norm,
    the mean of w is subtracted first. In a few models the output of an FFN passes a norm before it is added to the stream; then w
    is multiplied by the gain of that norm too. A negative activation promotes the demoted tokens.

    What later blocks make of the neuron's output is left out, so the result says least about neurons of the first blocks.

    Parameters
    ----------
    model : transformers causal or encoder-decoder language model
        Its head may be tied to its embeddings or not.
    ffns : FFNs
    k : int
        Number of tokens on each side.
    neurons : mapping from str to sequence of int, optional
        Chosen neurons, by prunable layer; by default all neurons of all layers.
    tokens : (vocabulary,) bool tensor, optional
        False for tokens that are never listed.
    progress : callable, optional
        See :func:`llmrank.calibration.collect.collect_statistics`.

    Returns
    -------
    dict from str to LensTokens
        By prunable layer, with a row for each chosen neuron. A layer that does not write to the residual stream that the head
        reads has no entry: a layer of an encoder in front of a decoder, or a hidden layer of an FFN that is not its last.

    Raises
    ------
    UnsupportedModelError
        The model predicts no next token, or something else than a norm stands in front of its head.
    OptionError
        `k` is below 1, or above the number of tokens that may be listed.

    Notes
    -----
    Cost: ``2 * neurons * n * vocabulary`` operations for a residual stream of n features. Memory: blocks of 1024 neurons by 8192
    tokens and of 8192 rows of the head.

    References
    ----------
    .. [1] nostalgebraist, "interpreting GPT: the logit lens", LessWrong, 2020.
    .. [2] M. Geva et al., "Transformer feed-forward layers build predictions by promoting concepts in the vocabulary space",
       EMNLP 2022, arXiv:2203.14680.
    """
    norms = find_norms(model, ffns)
    head = model.get_output_embeddings().weight.detach()
    listed = torch.ones(len(head), dtype=torch.bool) if tokens is None else tokens.cpu()[: len(head)]
    allowed = listed.nonzero().flatten()
    if not 1 <= k <= len(allowed):
        raise OptionError(f"k must be an integer from 1 to the {len(allowed)} tokens, got {k!r}")
    writing = {
        layer.name: (ffn, layer, list(range(layer.size)) if neurons is None else list(neurons[layer.name]))
        for ffn, layer in _writing_layers(model, ffns, head.shape[1])
        if neurons is None or layer.name in neurons
    }
    best = {name: (_Best(len(chosen), k), _Best(len(chosen), k)) for name, (*_, chosen) in writing.items()}
    blocks = list(torch.split(allowed, TOKENS_AT_ONCE))
    for block in shown(progress, blocks, "Reading the logit lens"):
        weight = head[block.to(head.device)].float()
        for name, (ffn, layer, chosen) in writing.items():
            for start in range(0, len(chosen), NEURONS_AT_ONCE):
                rows = slice(start, start + NEURONS_AT_ONCE)
                logits = _directions(ffn, layer, norms, chosen[rows]).to(weight.device) @ weight.T
                for side, sign in zip(best[name], (1.0, -1.0), strict=True):
                    side.add(rows, logits, block, sign)
    return {name: LensTokens(up.tokens, up.values, down.tokens, -down.values) for name, (up, down) in best.items()}


class _Best:
    """For each neuron (a row), the k largest of the values added so far, and the tokens that they belong to."""

    def __init__(self, n: int, k: int) -> None:
        self.values, self.tokens = torch.full((n, k), -torch.inf), torch.zeros(n, k, dtype=torch.int64)

    def add(self, rows: slice, logits: torch.Tensor, block: torch.Tensor, sign: float) -> None:
        """Add the logits (rows, tokens of the block), multiplied by the sign; with a sign of -1, the lowest logits are kept."""
        k = self.values.shape[1]
        values, at = logits.topk(min(k, len(block)), largest=sign > 0)
        merged = torch.cat([self.values[rows], sign * values.cpu()], dim=1)
        tokens = torch.cat([self.tokens[rows], block[at.cpu()]], dim=1)
        self.values[rows], order = merged.topk(k)
        self.tokens[rows] = tokens.gather(1, order)


def _writing_layers(model: Any, ffns: FFNs, size: int) -> Iterator[tuple[FFN, PrunableLayer]]:
    """Yield the layers whose output maps write to the residual stream that the head reads, which has `size` features."""
    for ffn in ffns:
        if getattr(model.config, "is_encoder_decoder", False) and not is_decoder(model, ffn):
            continue
        layer = ffn.prunable.get(len(ffn.stages) - 1)
        if layer is not None and layer.output_maps and layer.output_maps[0].size == size:
            yield ffn, layer


def _directions(ffn: FFN, layer: PrunableLayer, norms: Norms, chosen: list[int]) -> torch.Tensor:
    """Return what each chosen neuron adds to the input of the head, (neurons, n) float32."""
    weight = layer.output_maps[0].weight
    written = weight.index_select(1, torch.tensor(chosen).to(weight.device)).T.float().cpu()
    if ffn.name in norms.behind:
        written = norms.behind[ffn.name].apply(written)
    return norms.final.apply(written)
