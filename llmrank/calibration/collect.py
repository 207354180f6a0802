"""Collect statistics of the activations at every layer of the FFNs, with forward hooks that add to sums over tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack

import torch
from torch import nn

from llmrank.calibration.residual import SkipSums, add_stream_hook
from llmrank.calibration.statistics import AttentionStatistics, FFNStatistics
from llmrank.calibration.statistics.sums import FFNSums, MixtureSums
from llmrank.execution import Execution
from llmrank.execution.hooks import TokenMasks
from llmrank.models import FFN, FFNs
from llmrank.models.forward import body_of, evaluation_mode, model_inputs, run_on_calibration_inputs
from llmrank.text import TokenSequences

__all__ = ["collect_statistics"]


def collect_statistics(
    model: nn.Module,
    ffns: FFNs,
    sequences: TokenSequences,
    execution: Execution = Execution(),
    *,
    skips: bool = False,
    attentions: Mapping[str, FFN] | None = None,
    run: Callable[[TokenMasks], None] | None = None,
) -> tuple[FFNStatistics, ...]:
    """Run a model on the calibration sequences, and collect the statistics of every layer of its FFNs.

    Parameters
    ----------
    model : nn.Module
        A transformers model, or a plain module that takes token ids or features as its only argument.
    ffns : FFNs
    sequences : TokenSequences
    execution : Execution
        Each process runs the model on its share of the sequences. The sums are added up, so all return the same statistics.
    skips : bool
        Whether to measure, for every block, the share of the residual stream that skips it.
    attentions : mapping from str to FFN, optional
        Attentions whose statistics are collected too, each under the name of the FFN that follows it.
    run : callable, optional
        Runs the FFNs on all sequences, in place of the forward passes of the model. It gets an object for the masks of padding,
        and replaces these masks before it runs each batch.

    Returns
    -------
    tuple of FFNStatistics
        In the order of `ffns`.

    Raises
    ------
    CalibrationError
        Activations are not finite, no token reached an FFN or attention, padding cannot be told from text, or the model cannot
        read the ids or does not run on them alone.
    StructureError
        `skips` is set, and an FFN lies in no block with a residual stream.

    Notes
    -----
    Cost: one forward pass of all sequences. Memory: that of the forward pass of one batch.
    """
    masks = TokenMasks()
    attentions = attentions or {}
    ffns_and_attentions = FFNs((*ffns, *attentions.values()))
    body = body_of(model, ffns_and_attentions)
    mixture_sums: dict[str, MixtureSums] = {}
    skip_sums: dict[str, SkipSums] = {}
    with ExitStack() as hooks, torch.no_grad(), evaluation_mode(model, ffns):
        sums = [FFNSums(hooks, model, entry, masks) for entry in ffns_and_attentions]
        for ffn in ffns:
            mixture = ffn.mixture
            if mixture is not None and mixture.name not in mixture_sums:
                mixture_sums[mixture.name] = MixtureSums(mixture.name)
                add_stream_hook(hooks, model, ffn, mixture.module, masks, mixture_sums[mixture.name].add)
            if skips and ffn.block not in skip_sums:
                skip_sums[ffn.block] = SkipSums(ffn.block)
                add_stream_hook(hooks, model, ffn, model.get_submodule(ffn.block), masks, skip_sums[ffn.block].add)
        if run is not None:
            run(masks)
        else:
            for batch in execution.steps(execution.batches(sequences), "Calibrating"):
                inputs, *batch_masks = model_inputs(model, *batch)
                masks.replace(TokenMasks(*batch_masks))
                run_on_calibration_inputs(model, body, inputs)
    of_mixtures = [part for entry in mixture_sums.values() for part in entry.parts]
    execution.processes.add_up([*(part for entry in sums for part in entry.parts), *of_mixtures, *skip_sums.values()])
    layers = [entry.finish() for entry in sums]
    mixtures = {name: entry.finish() for name, entry in mixture_sums.items()}
    # `sums` and `layers` hold first the FFNs, and then the attentions.
    attention_layers = dict(zip(attentions, layers[len(ffns) :], strict=True))
    return tuple(
        FFNStatistics(
            ffn_layers,
            skip_sums[ffn.block].share() if skips else None,
            AttentionStatistics(attentions[ffn.name], attention_layers[ffn.name]) if ffn.name in attentions else None,
            entry.finish_routing(ffn_layers[-1]),
            None if ffn.mixture is None else mixtures[ffn.mixture.name],
        )
        for ffn, entry, ffn_layers in zip(ffns, sums, layers, strict=False)
    )
