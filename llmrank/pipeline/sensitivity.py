"""What a model's output suffers when one layer alone is cut: where a budget had better be smaller.

The output has to be computed anew for every layer, but what lies in front of the layer has not changed. Where the
blocks of a stack follow one another directly, those before the layer's own answer with what they returned when nothing
was cut; elsewhere whole passes are all there is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from llmrank.calibration.forward import (
    Progress,
    at_least_float32,
    evaluation_mode,
    first_output,
    model_inputs,
    run_body,
    substitute_forward,
    unpadded_rows,
    write_count,
)
from llmrank.calibration.recording import recording
from llmrank.calibration.text import TokenSequences
from llmrank.errors import CalibrationError, OptionError
from llmrank.evaluation.fidelity import divergences
from llmrank.models import FFN, PrunableLayer
from llmrank.prune.masks import Masks
from llmrank.surgery.apply import prunable_layers
from llmrank.surgery.equivalence import silence

__all__ = ["layer_sensitivities"]

# Rows of features that count as one sequence, as for batches.
FEATURE_ROWS = 256
# What two sequences of the usual length hold.
TOKENS = 2048


@torch.no_grad()
def layer_sensitivities(
    model: nn.Module,
    ffns: Sequence[FFN],
    masks: Masks,
    sequences: TokenSequences,
    batch_size: int = 1,
    samples: int | None = None,
    progress: Progress | None = None,
) -> dict[str, float]:
    """How far the model's output moves when each layer by itself loses the neurons that its mask removes.

    For a model with a prediction head (its output has `logits`) it is the mean over tokens of KL(p || q) in nats: p what
    the dense model predicts, q what it predicts when the maps that read the layer read zeros of its removed neurons. For
    others (encoders, plain modules) it is the mean over tokens of ``||y' - y||^2 / ||y||^2``, y being the first output of
    the dense model (the last hidden state); tokens with y = 0 are left out. Padding does not count.

    Parameters
    ----------
    model : nn.Module
        Left as it came, whatever is raised. As for :func:`llmrank.calibration.statistics.collect`.
    ffns : sequence of FFN
        Found ones (not explicit).
    masks : Masks
        Of all prunable layers.
    sequences : TokenSequences
    batch_size : int
        Sequences at once; the result does not depend on it beyond round-off.
    samples : int, optional
        How many of the first sequences are used; of features, 256 rows count as one. By default two, or as many as it takes
        to 2,048 tokens where sequences are short.
    progress : callable, optional
        See :func:`llmrank.calibration.statistics.collect`; called once, over batches times layers.

    Returns
    -------
    dict from str to float
        By the name of the prunable layer, >= 0; exactly 0 where the mask removes nothing.

    Raises
    ------
    OptionError
        FFNs of the explicit form, whose rows nobody is known to read, or `samples` below 1.
    MaskError
        Masks of another model.
    CalibrationError
        An output that is not finite; the message names the layer.

    Notes
    -----
    Cost: one forward pass a batch, and for each layer one from its own block to the end, half a pass on average. Whole
    passes where the blocks do not follow one another directly: encoder-decoders, blocks that are called twice or out of order,
    or whose output something else changes on the way to the next one. Memory, for one batch: what each block returns, and two
    outputs of the model, which for logits take batch * length * vocabulary * 4 bytes each.

    Examples
    --------
    The second neuron is all that the output comes from, the first is read with weight 0:

    >>> from llmrank.models import find_ffns
    >>> from llmrank.calibration.text import tokenise
    >>> mlp = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False))
    >>> _ = mlp[0].weight.data.copy_(torch.eye(2)), mlp[2].weight.data.copy_(torch.tensor([[0.0, 1.0], [0.0, 2.0]]))
    >>> sequences = tokenise(torch.ones(4, 2), None, 4, 2)
    >>> layer_sensitivities(mlp, find_ffns(mlp), Masks({"0": [0, 1]}), sequences)
    {'0': 0.0}
    >>> layer_sensitivities(mlp, find_ffns(mlp), Masks({"0": [1, 0]}), sequences)
    {'0': 1.0}
    """
    layers = prunable_layers(ffns)
    if any(not layer.consumers for layer in layers.values()):
        raise OptionError("sensitivities need whole FFNs; with structure_dict only rows go, whoever reads them")
    if samples is not None and samples < 1:
        raise OptionError(f"samples must be an integer >= 1, got {samples!r}")
    masks.check(layers)
    batches = list(_first(sequences, samples).batches(batch_size))
    cut = [layer for layer in layers.values() if not bool(masks[layer.name].all())]
    steps = [(batch, layer) for batch in batches for layer in cut]
    totals = dict.fromkeys(layers, 0.0)
    count = 0
    with evaluation_mode(model):
        for batch, layer in progress(steps, "Measuring sensitivities") if progress else steps:
            if layer is cut[0]:
                dense = _Dense(model, ffns, *batch)
                count += dense.count
            totals[layer.name] += dense.change(layer, masks[layer.name])
            if layer is cut[-1]:
                del dense  # before the next batch takes as much memory
    for layer in cut:
        mean = torch.tensor(totals[layer.name], dtype=torch.float64) / count
        if not bool(torch.isfinite(mean)):
            raise CalibrationError(
                f"the model's output is not finite, or zero everywhere, when {layer.name} is cut: the weights hold NaN or "
                "Inf, or the dtype overflows; load the model in float32 or bfloat16 and check its perplexity"
            )
        # A divergence of round-off may come out below zero.
        totals[layer.name] = max(float(mean), 0.0)
    return totals


def _first(sequences: TokenSequences, samples: int | None) -> TokenSequences:
    if sequences.ids.is_floating_point():
        count = FEATURE_ROWS * (2 if samples is None else samples)
    elif samples is None:
        reached = sequences.mask.sum(1).cumsum(0) >= TOKENS
        count = max(2, int(reached.int().argmax()) + 1 if bool(reached.any()) else len(sequences))
    else:
        count = samples
    return TokenSequences.of(sequences.ids[:count], sequences.mask[:count], sequences.source)


class _Dense:
    """One batch on its way through the dense model: what comes out, and what each block returned.

    Attributes
    ----------
    count : int
        Tokens that the changes are sums over.
    """

    def __init__(self, model: nn.Module, ffns: Sequence[FFN], ids: torch.Tensor, mask: torch.Tensor) -> None:
        self._model = model
        self._inputs, of_input, of_decoder = model_inputs(model, ids, mask)
        self._mask = of_decoder if "decoder_input_ids" in self._inputs else of_input
        self._blocks: list[nn.Module] = []
        self._returned: list[Any] = []
        output, self._predicts = self._remember(ffns)
        if self._predicts:
            self._output = output.log_softmax(-1)
            self.count = len(output)
        else:
            self._output = output
            self.count = int((output.square().sum(-1) != 0).sum())

    def change(self, layer: PrunableLayer, keep: torch.Tensor) -> float:
        """The output's divergence, or its relative squared change, summed over tokens, when a layer alone is cut."""
        with ExitStack() as hooks:
            silence(hooks, layer, keep)
            for block, returned in zip(self._before(layer), self._returned, strict=False):
                substitute_forward(hooks, block, lambda *_args, answer=returned, **_kwargs: answer)
            output, _ = self._run()
        if self._predicts:
            return float(divergences(self._output, output).sum())
        return _relative_change(self._output, output)

    def _remember(self, ffns: Sequence[FFN]) -> tuple[torch.Tensor, bool]:
        """The dense pass; afterwards the blocks are known, and what they returned, where that can stand in for them."""
        returned: list[Any] = []
        versions: list[int | None] = []

        def noting(compute: Callable[..., Any]) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                returned.append(compute(*args, **kwargs))
                versions.append(write_count(first_output(returned[-1])))
                return returned[-1]

            return forward

        with recording(self._model, ffns) as record, ExitStack() as hooks:
            for block in record.blocks:
                substitute_forward(hooks, block, noting(block.forward))
            output = self._run()
        # The last block is never stood in for, and what comes after it may write to what it returned.
        unchanged = all(
            version is not None and version == write_count(first_output(answer))
            for version, answer in zip(versions[:-1], returned[:-1], strict=True)
        )
        if record.unbroken and all(len(calls) == 1 for calls in record.calls) and unchanged:
            self._blocks, self._returned = record.blocks, returned
        return output

    def _run(self) -> tuple[torch.Tensor, bool]:
        """Outputs (tokens, n) of a pass without padding, in float32 or wider, and whether they are logits."""
        model, inputs = self._model, self._inputs
        result = run_body(model, inputs)
        logits = getattr(result, "logits", None)
        # Of a single number a distribution says nothing.
        predicts = isinstance(logits, torch.Tensor) and logits.shape[-1] > 1
        values = logits if isinstance(logits, torch.Tensor) and predicts else first_output(result)
        mask = self._mask
        # One output for a whole sequence has no padding.
        rows = unpadded_rows(values, mask if mask is not None and mask.shape == values.shape[:-1] else None)
        return at_least_float32(rows), predicts

    def _before(self, layer: PrunableLayer) -> list[nn.Module]:
        """The blocks that no cut of this layer reaches."""
        readers = {id(consumer.module) for consumer in layer.consumers}
        for position, block in enumerate(self._blocks):
            if any(id(module) in readers for module in block.modules()):
                return self._blocks[:position]
        return []


def _relative_change(dense: torch.Tensor, output: torch.Tensor) -> float:
    """Sum over rows of ||y' - y||^2 / ||y||^2, rows of zeros left out."""
    size = dense.square().sum(-1)
    shares = (output - dense).square().sum(-1) / size
    return float(shares[size != 0].cpu().double().sum())
