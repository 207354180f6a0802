"""Collect statistics block by block, for models larger than memory."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from llmrank.calibration.collect import collect_statistics
from llmrank.calibration.statistics import FFNStatistics
from llmrank.calibration.statistics.statistics_file import read_statistics, write_statistics
from llmrank.errors import OptionError
from llmrank.execution import Execution
from llmrank.execution.block_passes import BlockPasses
from llmrank.execution.hooks import TokenMasks
from llmrank.execution.recording import broken_error, record_without_running
from llmrank.execution.states import States
from llmrank.models import FFN, FFNs
from llmrank.models.forward import model_inputs
from llmrank.text import TokenSequences

__all__ = ["block_passes", "collect_by_block"]

STAGE = "calibrated"


def collect_by_block(
    model: nn.Module,
    ffns: FFNs,
    sequences: TokenSequences,
    execution: Execution,
    *,
    skips: bool = False,
    attentions: Mapping[str, FFN] | None = None,
) -> tuple[FFNStatistics, ...]:
    """Collect the statistics of :func:`llmrank.calibration.collect.collect_statistics`, one block after the other.

    All sequences pass a block before the next block begins, so the weights of each block are read once. The hidden states between
    two blocks, and the statistics so far, are in files of the work directory. If this process ends, another process can go on at
    the same block.

    Parameters
    ----------
    model, ffns, sequences, execution, skips, attentions
        See :func:`llmrank.calibration.collect.collect_statistics`, also for the exceptions. The execution must have a work
        directory.

    Raises
    ------
    OptionError
        The blocks of the model do not follow one another directly, statistics of attentions are asked for, or a file of the
        work directory holds statistics of FFNs of other sizes or kinds.

    Notes
    -----
    Cost: one forward pass of all sequences, and two of a few tokens. Memory: what one block needs for one batch, and the hidden
    states in front of the first block. Memory of a device: one block, and what it needs for one batch. Each block is transferred
    to the device once.
    """
    if attentions:
        raise OptionError(
            "attentions are not measured block by block; leave attention out, or run without --low-memory (in Python: "
            "work_directory)"
        )
    if execution.work is None:
        raise OptionError("statistics are collected block by block in a work directory; give the execution one")
    work = execution.work
    passes, first_states = block_passes(model, ffns, execution.batches(sequences), execution.device)
    done = work.blocks_done(STAGE, len(passes.blocks), {"side": "states"})
    states = States.in_files(work.file("states"), first_states, None if done is None else done["side"])
    del first_states
    found: dict[str, FFNStatistics] = {}
    members = [FFNs(ffn for ffn in ffns if passes.positions[ffn.name] == k) for k in range(len(passes.blocks))]
    for position, inside in enumerate(execution.steps(members, "Calibrating, block by block")):
        file = work.file(f"statistics-{position}.safetensors")
        if done is not None and position < done["blocks"]:
            statistics = read_statistics(file) if inside else ()
            kinds = [(entry.sizes, entry.routing is not None, entry.mixture is not None) for entry in statistics]
            if kinds != [(ffn.sizes, ffn.is_routed, ffn.mixture is not None) for ffn in inside]:
                raise OptionError(
                    f"{file} does not hold the statistics of the FFNs of its block; delete {work.path}, and start again"
                )
        else:
            run = partial(_advance, passes, position, states)
            if inside:
                with passes.onloaded_block(position):  # the sums are made where the weights of the block are
                    statistics = collect_statistics(model, inside, sequences, run=run, skips=skips)
                write_statistics(file, statistics)
                work.keep(file)
            else:
                statistics = ()
                passes.advance(position, states)
            needed = [states.file] if position + 1 < len(members) else []
            work.note(STAGE, {"blocks": position + 1, "side": states.side}, needed, states.files)
        found |= {ffn.name: entry for ffn, entry in zip(inside, statistics, strict=True)}
    return tuple(found[ffn.name] for ffn in ffns)


def block_passes(
    model: nn.Module, ffns: FFNs, batches: list[tuple[Any, Any]], device: torch.device | None = None
) -> tuple[BlockPasses, list[Any]]:
    """Return an object that runs the blocks of a model on batches (ids, mask), and the states in front of the first block.

    Raises
    ------
    OptionError
        The blocks do not follow one another directly.
    """
    record = record_without_running(model, ffns, batches)
    if not record.unbroken:
        raise broken_error(model)
    masks = [TokenMasks(*model_inputs(model, *batch)[1:]) for batch in batches]
    return BlockPasses(model, ffns, record, masks, device), record.take_first_states()


def _advance(passes: BlockPasses, position: int, states: States, masks: TokenMasks) -> None:
    passes.masks = masks
    passes.advance(position, states)
