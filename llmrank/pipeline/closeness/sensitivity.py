"""Sensitivity of a layer: how much the model's output changes when that layer alone is pruned.

Pruning a layer changes nothing in front of it. So if each block of the model reads the output of the one before it, only the
block of the layer and the blocks behind it are run. They read the outputs of the dense model's earlier blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from llmrank.errors import CalibrationError, OptionError
from llmrank.evaluation.fidelity import divergences
from llmrank.execution import Execution
from llmrank.execution.hooks import unpadded_rows
from llmrank.execution.recording import recording
from llmrank.models import FFNs, PrunableLayer
from llmrank.models.compat import write_count
from llmrank.models.forward import (
    at_least_float32,
    evaluation_mode,
    first_output,
    model_inputs,
    run_body,
    substitute_forward,
)
from llmrank.prune.masks import Masks
from llmrank.surgery.equivalence import silence_layers
from llmrank.text import TokenSequences

__all__ = ["first_sequences", "layer_sensitivities"]

# Sequences are used until they hold this many tokens.
MOST_TOKENS = 2048
# Of the rows of features that a module which is no language model reads, this many are used: two batches.
FEATURE_ROWS = 512


@torch.no_grad()
def layer_sensitivities(
    model: nn.Module,
    ffns: FFNs,
    masks: Masks,
    sequences: TokenSequences,
    execution: Execution = Execution(),
    groups: Mapping[str, Sequence[PrunableLayer]] | None = None,
) -> dict[str, float]:
    """Measure how much the model's output changes when each layer alone loses the neurons that its mask removes.

    For a model with a prediction head (its output has `logits` of several classes) the sensitivity is the mean over tokens of
    KL(p || q) in nats, where p is the prediction of the dense model, and q the prediction when the output map of the layer reads
    zeros for the removed neurons. For other models (encoders, plain modules) it is the mean over tokens of
    ``||y' - y||^2 / ||y||^2``, where y is the output of the dense model (of several outputs the first) and y' that of the pruned
    one; tokens with y = 0 are left out. Padding does not count. If a model has one output for each sequence, as a classifier has,
    the mean is taken over sequences.

    Parameters
    ----------
    model : nn.Module
        Any model that :func:`llmrank.calibration.collect.collect_statistics` takes; left unchanged.
    ffns : FFNs
    masks : Masks
    sequences : TokenSequences
        As many are used, from the first on, as hold 2,048 tokens, but at least two; of rows of features, 512.
    execution : Execution
        Each process measures some of the groups; all return all sensitivities.
    groups : mapping from str to sequence of PrunableLayer, optional
        Layers that are pruned together, by a name for each group; by default every layer is a group of its own.

    Returns
    -------
    dict from str to float
        By the name of the layer or group; >= 0, and exactly 0 where the mask removes nothing.

    Raises
    ------
    OptionError
        The FFNs come from a `structure_dict`; or see :func:`llmrank.models.forward.model_inputs`.
    MaskError
        The masks are those of another model, or a mask keeps no neuron.
    CalibrationError
        An output is not finite, or the dense output is zero for every token (the message names the layer); or see
        :func:`llmrank.models.forward.model_inputs`.

    Notes
    -----
    Cost, for each batch: one forward pass, and for each layer a pass from its own block to the end (a complete pass if the blocks
    do not follow one another directly, as in encoder-decoders). Memory, for one batch: the output of each block, and two outputs
    of the model, which for logits take batch * length * vocabulary * 4 bytes each.

    Examples
    --------
    The output comes from the second neuron only; the first is read with weight 0:

    >>> from llmrank.models import find_ffns
    >>> from llmrank.text import tokenise
    >>> mlp = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False))
    >>> _ = mlp[0].weight.data.copy_(torch.eye(2)), mlp[2].weight.data.copy_(torch.tensor([[0.0, 1.0], [0.0, 2.0]]))
    >>> sequences = tokenise(torch.ones(4, 2), None, 4, 2)
    >>> layer_sensitivities(mlp, find_ffns(mlp), Masks({"0": [0, 1]}), sequences)
    {'0': 0.0}
    >>> layer_sensitivities(mlp, find_ffns(mlp), Masks({"0": [1, 0]}), sequences)
    {'0': 1.0}
    """
    if ffns.explicit:
        raise OptionError(
            "sensitivities need whole FFNs, and structure_dict does not say which linear map reads the removed rows; leave "
            "structure_dict out, or use a pruner that needs no sensitivities"
        )
    masks.check(ffns.layers)
    batches = list(first_sequences(sequences).batches(execution.batch_size))
    groups = groups or {name: [layer] for name, layer in ffns.layers.items()}
    pruned = [name for name, layers in groups.items() if not all(bool(masks[layer.name].all()) for layer in layers)]
    pruned = execution.processes.share_of(pruned)
    steps = [(batch, name) for batch in batches for name in pruned]
    totals = dict.fromkeys(groups, 0.0)
    count = 0
    with evaluation_mode(model, ffns):
        for batch, name in execution.steps(steps, "Measuring sensitivities"):
            if name is pruned[0]:
                dense = _DenseBatch(model, ffns, *batch)
                count += dense.count
            totals[name] += dense.total_change(groups[name], masks)
            if name is pruned[-1]:
                del dense  # frees its memory before the next batch needs as much
    for name in pruned:
        mean = torch.tensor(totals[name], dtype=torch.float64) / count
        if not bool(torch.isfinite(mean)):
            raise CalibrationError(
                f"the sensitivity of {name} is not finite: the model's output is zero everywhere, or the weights hold "
                "NaN or Inf, or the dtype overflows; load the model in float32 or bfloat16 and check its perplexity"
            )
        # Round-off can make a divergence negative.
        totals[name] = max(float(mean), 0.0)
    parts = execution.processes.gather({name: totals[name] for name in pruned})
    return totals | {name: value for part in parts for name, value in part.items()}


def first_sequences(sequences: TokenSequences) -> TokenSequences:
    """Return the first sequences, as many as hold 2,048 tokens, but at least two; of rows of features, 512."""
    if sequences.ids.is_floating_point():
        count = FEATURE_ROWS
    else:
        reached = sequences.mask.sum(1).cumsum(0) >= MOST_TOKENS
        count = max(2, int(reached.int().argmax()) + 1 if bool(reached.any()) else len(sequences))
    return TokenSequences.of(sequences.ids[:count], sequences.mask[:count], sequences.source)


class _DenseBatch:
    """The outputs of the dense model and of its blocks for one batch.

    `count` is the number of tokens that :meth:`total_change` sums over.
    """

    def __init__(self, model: nn.Module, ffns: FFNs, ids: torch.Tensor, mask: torch.Tensor) -> None:
        self._model = model
        self._inputs, input_mask, decoder_mask = model_inputs(model, ids, mask)
        self._mask = decoder_mask if "decoder_input_ids" in self._inputs else input_mask
        self._blocks: list[nn.Module] = []
        self._returned: list[Any] = []
        output, self._predicts = self._remember(ffns)
        if self._predicts:
            self._output = output.log_softmax(-1)
            self.count = len(output)
        else:
            self._output = output
            self.count = int((output.square().sum(-1) != 0).sum())

    def total_change(self, layers: Sequence[PrunableLayer], masks: Masks) -> float:
        """Return the change of the output, summed over tokens, when only these layers, all of one block, are pruned."""
        with ExitStack() as hooks:
            silence_layers(hooks, layers, masks)
            for block, returned in zip(self._blocks_before(layers[0]), self._returned, strict=False):
                substitute_forward(hooks, block, lambda *_args, answer=returned, **_kwargs: answer)
            output, _ = self._run()
        if self._predicts:
            return float(divergences(self._output, output).sum())
        # The sum over rows of ||y' - y||^2 / ||y||^2, where rows with y = 0 are left out.
        size = self._output.square().sum(-1)
        shares = (output - self._output).square().sum(-1) / size
        return float(shares[size != 0].cpu().double().sum())

    def _remember(self, ffns: FFNs) -> tuple[torch.Tensor, bool]:
        """Run the dense model as :meth:`_run` does, and keep the outputs of its blocks if other passes can use them.

        That is so if the blocks follow one another directly (the record is unbroken), each is called once, and no later module
        writes to the output of a block.
        """
        returned: list[Any] = []
        write_counts: list[int | None] = []

        def remembering(compute: Callable[..., Any]) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                returned.append(compute(*args, **kwargs))
                write_counts.append(write_count(first_output(returned[-1])))
                return returned[-1]

            return forward

        with recording(self._model, ffns) as record, ExitStack() as hooks:
            for block in record.blocks:
                substitute_forward(hooks, block, remembering(block.forward))
            output = self._run()
        # The output of the last block is not used again, so later modules may write to it.
        unchanged = all(
            count is not None and count == write_count(first_output(output_of_block))
            for count, output_of_block in zip(write_counts[:-1], returned[:-1], strict=True)
        )
        if record.unbroken and all(len(calls) == 1 for calls in record.calls) and unchanged:
            self._blocks, self._returned = record.blocks, returned
        return output

    def _run(self) -> tuple[torch.Tensor, bool]:
        """Return the (tokens, n) outputs of a forward pass without padding, in float32 or wider, and whether they are logits."""
        model, inputs = self._model, self._inputs
        result = run_body(model, inputs)
        logits = getattr(result, "logits", None)
        # A distribution over a single class is always the same.
        predicts = isinstance(logits, torch.Tensor) and logits.shape[-1] > 1
        values = logits if isinstance(logits, torch.Tensor) and predicts else first_output(result)
        mask = self._mask
        # A classifier has one output for each sequence, and none of them is padding.
        rows = unpadded_rows(values, mask if mask is not None and mask.shape == values.shape[:-1] else None)
        return at_least_float32(rows), predicts

    def _blocks_before(self, layer: PrunableLayer) -> list[nn.Module]:
        """Return the blocks in front of the layer's own block; none if no outputs of blocks are kept."""
        output_maps = {id(output_map.owner) for output_map in layer.output_maps}
        for position, block in enumerate(self._blocks):
            if any(id(module) in output_maps for module in block.modules()):
                return self._blocks[:position]
        return []
