"""The share that skips a block, compared with hidden states that hooks of the test captured."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from llmrank.calibration.collect import collect_statistics
from llmrank.calibration.residual import SkipSums, hidden_states
from llmrank.errors import StructureError
from llmrank.execution import Execution
from llmrank.models import find_ffns
from llmrank.text import tokenise
from tests.llmrank.tiny_models import (
    family_model,
    features,
    mlp,
    named_family,
    text,
    tiny_llama,
    token_ids,
    tokenizer,
    whole_sequences,
)


def share_by_hand(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    kept = moved = 0.0
    for before, after in pairs:
        for h, o in zip(before.flatten(0, -2).tolist(), after.flatten(0, -2).tolist(), strict=True):
            kept += sum(value * value for value in h) ** 0.5
            moved += sum((b - a) ** 2 for a, b in zip(h, o, strict=True)) ** 0.5
    return kept / (kept + moved)


@pytest.mark.parametrize(
    ("name", "stack"), [("Llama, SmolLM2", "model.layers"), ("OPT", "model.decoder.layers"), ("GPT-2", "transformer.h")]
)
def test_the_share_of_every_block(name: str, stack: str) -> None:
    model, ids = family_model(named_family(name)), token_ids(3, 10)
    ffns = find_ffns(model)  # before the hooks, because it runs modules
    states: dict[int, list[Any]] = {0: [], 1: []}
    for k, block in enumerate(model.get_submodule(stack)):
        block.register_forward_hook(
            lambda _b, args, kwargs, output, k=k: states[k].append(
                (hidden_states(args, kwargs), output if isinstance(output, torch.Tensor) else output[0])
            ),
            with_kwargs=True,
        )
    found = collect_statistics(model, ffns, whole_sequences(ids), Execution(2), skips=True)
    assert [entry.skip for entry in found] == pytest.approx([share_by_hand(states[k]) for k in (0, 1)], rel=1e-5)
    assert all(entry.skip is None for entry in collect_statistics(model, ffns, whole_sequences(ids)))


def test_padding_does_not_count() -> None:
    model = tiny_llama()
    ffns = find_ffns(model)
    padded = tokenise([text(20), text(7, seed=1)], tokenizer(), 2, 32)
    assert not bool(padded.mask.all())
    together = [entry.skip for entry in collect_statistics(model, ffns, padded, Execution(2), skips=True)]
    alone = SkipSums("first")
    model.model.layers[0].register_forward_hook(
        lambda _b, args, output: alone.add(args[0].flatten(0, -2), output.flatten(0, -2))
    )
    with torch.no_grad():
        for ids, mask in zip(padded.ids, padded.mask, strict=True):
            model(input_ids=ids[None, mask])
    assert together[0] == pytest.approx(alone.share(), rel=1e-5)


class Block(nn.Module):
    """A multilayer perceptron with a skip connection."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.mlp = mlp(4, 6, 4, seed=seed)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = hidden_states + self.mlp(hidden_states)
        return out


class Stack(nn.Module):
    """Blocks that get their hidden states as a keyword argument."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block(seed) for seed in range(2)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(hidden_states=x)
        return x


def test_hidden_states_may_be_a_keyword_argument() -> None:
    model, x = Stack(), features(7, 4)
    found = collect_statistics(model, find_ffns(model), whole_sequences(x), skips=True)
    with torch.no_grad():
        states = [x, model.layers[0](x), model(x)]
    assert [entry.skip for entry in found] == pytest.approx(
        [share_by_hand([pair]) for pair in itertools.pairwise(states)], rel=1e-5
    )


def test_the_share_of_a_block_that_changes_nothing_is_one() -> None:
    sums = SkipSums("block")
    assert sums.share() == 0.0
    sums.add(torch.ones(3, 2), torch.ones(3, 2))
    assert sums.share() == 1.0


def test_ffns_without_a_residual_stream_raise() -> None:
    model = mlp(4, 6, 4)
    with pytest.raises(StructureError, match="lies in no repeating stack"):
        collect_statistics(model, find_ffns(model), whole_sequences(features(5, 4)), skips=True)
    with pytest.raises(StructureError, match=r"block takes hidden states of shape \(2, 3\) and returns \(2, 4\)"):
        SkipSums("block").add(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(StructureError, match="is not called with hidden states first"):
        hidden_states((1,), {})


def test_the_block_of_an_ffn() -> None:
    assert [ffn.block for ffn in find_ffns(tiny_llama())] == ["model.layers.0", "model.layers.1"]
    assert find_ffns(family_model(named_family("T5")))[-1].block == "decoder.block.1"
