"""The tokens of the calibration text at which each neuron is most active."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import nn

from llmrank.errors import OptionError, check_count, not_finite
from llmrank.execution import Execution
from llmrank.execution.hooks import TokenMasks, add_hook
from llmrank.models import FFN, FFNs
from llmrank.models.experts import Routing
from llmrank.models.forward import body_of, evaluation_mode, is_decoder, model_inputs, run_body
from llmrank.text.sequences import TokenSequences

__all__ = ["TopActivations", "collect_top_activations"]


@dataclass(frozen=True, eq=False)
class TopActivations:
    """The largest activations of every neuron, by absolute value, and where in the text they occur.

    Attributes
    ----------
    sequences : TokenSequences
        The text.
    activations : mapping from str to (n, k) float32 tensor
        For each prunable layer, by its name, the k activations of each of its n neurons, with their signs. Those of the largest
        absolute values come first.
    positions : mapping from str to (n, k) int64 tensor
        For each activation, the index in ``sequences.ids.flatten()`` of the token that it belongs to. If a neuron was active at
        fewer than k tokens, the rest is -1.
    """

    sequences: TokenSequences
    activations: Mapping[str, torch.Tensor]
    positions: Mapping[str, torch.Tensor]


def collect_top_activations(
    model: nn.Module,
    ffns: FFNs,
    sequences: TokenSequences,
    k: int = 5,
    execution: Execution = Execution(),
    *,
    layers: Collection[str] | None = None,
    skip: int = 1,
) -> TopActivations:
    """Run a model on the calibration sequences, and find for every neuron the tokens at which it is most active.

    An activation is what the output map reads from a neuron. For Linears that a `structure_dict` names, it is what the next of
    them reads. Absolute values are compared, because a negative activation of a neuron changes the output as much as a positive
    one, in the opposite direction. Negative activations are common in gated FFNs; an FFN with a ReLU and no gate has none.

    Parameters
    ----------
    model : nn.Module
        A model that reads token ids.
    ffns : FFNs
    sequences : TokenSequences
        Padding does not count. For the neurons of an expert, only the tokens count that the router sends to the expert.
    k : int
        Number of activations to keep for each neuron.
    execution : Execution
    layers : collection of str, optional
        Names of the prunable layers to watch; all by default.
    skip : int
        Number of tokens at the beginning of every sequence that do not count. By default, the first token does not count: it has
        no context, and in many models its activations are far larger than all others (massive activations [1]_), so that it
        would be the top token of most neurons.

    Raises
    ------
    OptionError
        `k` is below 1, or the sequences are features and not tokens.
    CalibrationError
        Activations are not finite, padding cannot be told from text at an FFN, or the model cannot read the ids.

    Notes
    -----
    Cost: one forward pass of all sequences. Memory: 12 bytes for each of the k activations of a neuron, beside the forward pass
    of one batch.

    References
    ----------
    .. [1] M. Sun et al., "Massive activations in large language models", 2024, arXiv:2402.17762.
    """
    check_count("k", k)
    if sequences.ids.is_floating_point():
        raise OptionError("top activations need tokens, and this model reads features; expected sequences of token ids")
    body = body_of(model, ffns)
    masks, positions = TokenMasks(), TokenMasks()
    found: dict[str, _TopTokens] = {}
    with ExitStack() as hooks, torch.no_grad(), evaluation_mode(model, ffns):
        for ffn in ffns:
            for index, layer in ffn.prunable.items():
                if layers is None or layer.name in layers:
                    found[layer.name] = _watch(hooks, model, ffn, index, k, masks, positions)
        batches, first_row = list(sequences.batches(execution.batch_size)), 0
        for ids, mask in execution.steps(batches, "Finding contexts"):
            inputs, *_ = model_inputs(model, ids, mask)
            is_encoder_decoder = "decoder_input_ids" in inputs
            positions.replace(_positions(mask, first_row, skip, is_encoder_decoder=is_encoder_decoder))
            masks.replace(
                TokenMasks(*(None if each is None else each >= 0 for each in (positions.input, positions.decoder)))
            )
            run_body(body, inputs)
            first_row += len(ids)
    finished = {name: top.finish(name) for name, top in found.items()}
    return TopActivations(
        sequences,
        {name: activations for name, (activations, _) in finished.items()},
        {name: places for name, (_, places) in finished.items()},
    )


def _positions(mask: torch.Tensor, first_row: int, skip: int, *, is_encoder_decoder: bool) -> TokenMasks:
    """Return the index in the text of every token of a batch, or -1 if the token does not count.

    The indices are in a TokenMasks, in the places of the masks, and `first_row` is the number of the batch's first sequence. The
    decoder of an encoder-decoder model reads a start token and then the second half of a sequence, each token one step later.
    """
    n, length = mask.shape
    indices = torch.arange(first_row * length, (first_row + n) * length).view(n, length)
    indices = indices.where(mask.cpu() & (torch.arange(length) >= skip), torch.tensor(-1))
    if not is_encoder_decoder:
        return TokenMasks(indices)
    half = length // 2
    start = torch.full((n, 1), -1)
    return TokenMasks(indices[:, :half], torch.cat([start, indices[:, half:-1]], dim=1))


def _watch(
    hooks: ExitStack, model: nn.Module, ffn: FFN, layer: int, k: int, masks: TokenMasks, positions: TokenMasks
) -> _TopTokens:
    """Register a hook that keeps the top activations of one layer of an FFN, until `hooks` closes."""
    # No known map reads the last layer of an explicit FFN. So the output of the layer's own map is used for it.
    is_read = layer < len(ffn.stages)
    module = ffn.stages[layer if is_read else layer - 1][0].module
    routing = ffn.routing_of(module)
    side = "decoder" if is_decoder(model, ffn) else "input"
    top = _TopTokens(ffn.sizes[layer], k, positions, side, routing)
    add_hook(hooks, model, ffn, module, top.add, masks, output=not is_read)
    return top


class _TopTokens:
    """The k largest activations of each neuron so far."""

    def __init__(self, size: int, k: int, positions: TokenMasks, side: str, routing: Routing | None) -> None:
        self._values = torch.zeros(k, size)
        self._places = torch.full((k, size), -1)
        self._positions, self._side, self._routing = positions, side, routing

    def add(self, values: torch.Tensor, mask: torch.Tensor | None) -> None:
        """Add the activations of hidden neurons (..., n); the mask is False where the position of the token is -1."""
        # The tensors are moved here, because the device is known only now if the weights are loaded for each call.
        device = values.device
        self._values, self._places = self._values.to(device), self._places.to(device)
        indices: torch.Tensor = getattr(self._positions, self._side).reshape(-1).to(device)
        if self._routing is not None:
            indices = indices[self._routing.tokens.to(device)]
        values = values.detach().reshape(-1, values.shape[-1]).to(self._values)
        if mask is not None:
            # Rows that do not count become zeros, and :meth:`finish` gives zeros no place. To select the other rows instead, the
            # program would have to wait for the GPU.
            values = values.where(mask.reshape(-1, 1).to(device), 0.0)
        k = len(self._values)
        best = values.abs().topk(min(k, len(values)), dim=0).indices
        merged = torch.cat([self._values, values.gather(0, best)])
        places = torch.cat([self._places, indices[best]])
        order = merged.abs().topk(k, dim=0).indices
        self._values, self._places = merged.gather(0, order), places.gather(0, order)

    def finish(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the activations of the neurons, and their positions in the text, (n, k) each."""
        if not bool(torch.isfinite(self._values).all()):
            raise not_finite(f"the activations of {name} are")
        places = self._places.where(self._values != 0, -1)
        return self._values.T.cpu().contiguous(), places.T.cpu().contiguous()
