"""Distances from the dense model, also where the hidden states behind its blocks are known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llmrank.execution import Execution
from llmrank.execution.recording import recording
from llmrank.models import FFNs, find_ffns
from llmrank.models.forward import run_sequences
from llmrank.pipeline.closeness.distance import DenseReference
from llmrank.prune.masks import Masks
from llmrank.surgery.equivalence import as_masked
from llmrank.text import TokenSequences, tokenise
from tests.llmrank.families import Family
from tests.llmrank.tiny_models import every_family, family_model, features, mlp, token_ids

# T5 has two stacks; Llama 3.2 Vision skips the blocks that attend to an image where it predicts text.
RUN_ALL_BLOCKS = {"T5", "T5 v1.1, Flan-T5", "Llama 3.2 Vision (text)"}


def padded() -> TokenSequences:
    mask = torch.ones(5, 20, dtype=torch.bool)
    mask[4, 15:] = False
    return TokenSequences.of(token_ids(5, 20), mask, "")


def every_second(ffns: FFNs) -> Masks:
    return Masks({name: torch.arange(layer.size) % 2 == 0 for name, layer in ffns.layers.items()})


class Residual(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self.mlp = mlp(6, 12, 6, seed=seed)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mlp(x)  # type: ignore[no-any-return]


class WithHead(nn.Module):
    """Its head reads the hidden states behind all blocks or the last one, which it may write to, or windows of 16 of them."""

    def __init__(self, head: str) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList([Residual(0), Residual(1)]), head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        behind = []
        for block in self.blocks:
            x = block(x)
            behind.append(x)
        if self.head == "in place":
            x.mul_(2.0)
        if self.head == "windows":
            return x.reshape(-1, 16, 6).sum(1)
        return torch.stack(behind).sum(0) if self.head == "all" else x


@pytest.mark.parametrize("head", ["all", "windows", "the last", "in place"])
def test_known_states_are_used_only_if_nothing_else_counts(head: str) -> None:
    model, execution = WithHead(head), Execution(32)
    ffns, sequences = find_ffns(model), tokenise(features(64, 6), None, 64, 2)
    cut = every_second(ffns)
    reference = DenseReference(model, ffns, sequences, execution)
    with as_masked(ffns, cut), recording(model, ffns, 1 << 30) as record:
        run_sequences(model, ffns, execution.batches(sequences))
    states = [state.clone() for state in record.last_outputs]
    assert states
    expected = reference.outputs(cut)
    for _ in range(2):
        found = reference.outputs(cut, states=record.last_outputs)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert reference._known_states.suffice == (head in ("the last", "in place"))
    assert all(torch.equal(one, other) for one, other in zip(record.last_outputs, states, strict=True))


@every_family
def test_known_states_give_the_outputs_of_a_pass_without_running_a_block(family: Family) -> None:
    model = family_model(family)
    ffns, sequences, execution = find_ffns(model), padded(), Execution(2)
    cut = every_second(ffns)
    reference = DenseReference(model, ffns, sequences, execution)
    with as_masked(ffns, cut), recording(model, ffns, 1 << 30) as record:
        run_sequences(model, ffns, execution.batches(sequences))
    expected = reference.outputs(cut)
    reference.outputs(cut, states=record.last_outputs)  # the first time there is a trial
    calls: list[int] = []
    for ffn in ffns:
        ffn.stages[0][0].module.register_forward_hook(lambda *_: calls.append(1))
    found = reference.outputs(cut, states=record.last_outputs)
    assert bool(calls) == (family.name in RUN_ALL_BLOCKS)
    (totals, counts), (wanted, tokens) = reference.distances([found, expected])
    assert counts == tokens
    assert min(wanted) > 0.0
    assert totals == wanted
