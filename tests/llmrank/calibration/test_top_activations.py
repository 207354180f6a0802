"""The top activations of every neuron, against a loop over tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llmrank.calibration.statistics.top_activations import collect_top_activations
from llmrank.errors import CalibrationError, OptionError
from llmrank.execution import Execution
from llmrank.models import find_ffns
from llmrank.text import TokenSequences
from tests.llmrank.tiny_mixtures import tiny_mixture
from tests.llmrank.tiny_models import (
    family_model,
    features,
    mlp,
    named_family,
    padded_sequences,
    tiny_llama,
    tiny_t5,
    token_ids,
    whole_sequences,
)

Seen = list[tuple[int, list[float]]]


def highest(seen: Seen, neuron: int, k: int) -> list[tuple[float, int]]:
    """The k largest absolute values of a neuron, as (value, position), by a loop."""
    values = [(values[neuron], position) for position, values in seen if values[neuron] != 0]
    return sorted(values, key=lambda pair: -abs(pair[0]))[:k]


def read_by_down_projection(model: Any, module: torch.nn.Module, sequences: TokenSequences) -> Seen:
    """What a linear map reads at every token but the first of each sequence, one sequence at a time and without padding."""
    seen: Seen = []
    row = 0

    def note(_module: Any, inputs: Any) -> None:
        flat = inputs[0].reshape(-1, inputs[0].shape[-1])
        seen.extend((row * sequences.length + at, values.tolist()) for at, values in enumerate(flat) if at > 0)

    with module.register_forward_pre_hook(note), torch.no_grad():
        for row, (ids, mask) in enumerate(zip(sequences.ids, sequences.mask, strict=True)):  # noqa: B007 -- note reads it
            model(input_ids=ids[mask][None])
    return seen


def check(model: Any, layer: str, module: torch.nn.Module, sequences: TokenSequences, k: int, batch_size: int) -> None:
    found = collect_top_activations(model, find_ffns(model), sequences, k, Execution(batch_size))
    seen = read_by_down_projection(model, module, sequences)
    for neuron in range(len(found.activations[layer])):
        expected = highest(seen, neuron, k)
        values, places = found.activations[layer][neuron], found.positions[layer][neuron]
        assert values[: len(expected)].tolist() == pytest.approx([value for value, _ in expected], rel=1e-4, abs=1e-6)
        assert places[: len(expected)].tolist() == [position for _, position in expected]
        assert not values[len(expected) :].any()
        assert (places[len(expected) :] == -1).all()


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("k", [1, 4])
def test_gated_ffns_and_padding(batch_size: int, k: int) -> None:
    model = tiny_llama()
    check(model, "model.layers.1.mlp", model.model.layers[1].mlp.down_proj, padded_sequences(), k, batch_size)


def test_ffns_without_gates() -> None:
    """A neuron behind a ReLU is silent at some tokens: they are not listed."""
    model = family_model(named_family("OPT"))
    sequences = whole_sequences(token_ids(2, 8))
    check(model, "model.decoder.layers.0", model.model.decoder.layers[0].fc2, sequences, 12, 2)


def test_the_first_token_counts_if_asked_for() -> None:
    model, sequences = tiny_llama(), whole_sequences(token_ids(3, 2))
    found = collect_top_activations(model, find_ffns(model), sequences, 6, skip=0)
    places = found.positions["model.layers.0.mlp"][0]
    assert sorted(places.tolist()) == [0, 1, 2, 3, 4, 5]
    without = collect_top_activations(model, find_ffns(model), sequences, 6)
    assert sorted(without.positions["model.layers.0.mlp"][0].tolist()) == [-1, -1, -1, 1, 3, 5]


def test_only_the_chosen_layers_are_watched() -> None:
    model = tiny_llama()
    found = collect_top_activations(
        model, find_ffns(model), whole_sequences(token_ids(2, 6)), layers=["model.layers.1.mlp"]
    )
    assert list(found.activations) == ["model.layers.1.mlp"]


@pytest.mark.parametrize("sequences", [whole_sequences(token_ids(3, 12)), padded_sequences()])
def test_experts_see_only_their_tokens(sequences: TokenSequences) -> None:
    model = tiny_mixture("mixtral")
    block = model.model.layers[0].mlp
    read: list[tuple[int, torch.Tensor]] = []
    row = 0

    def note(_module: Any, inputs: Any) -> None:
        read.extend((row * sequences.length + at, x) for at, x in enumerate(inputs[0][0]) if at > 0)

    with block.register_forward_pre_hook(note), torch.no_grad():
        for row, (ids, mask) in enumerate(zip(sequences.ids, sequences.mask, strict=True)):  # noqa: B007
            model(input_ids=ids[mask][None])
    found = collect_top_activations(model, find_ffns(model), sequences, 3, Execution(2))
    n_seen = []
    for expert in range(8):
        gate, up = block.experts.gate_up_proj[expert].detach().chunk(2)
        seen: Seen = []
        for position, x in read:
            chosen = (block.gate.weight.detach() @ x).topk(2).indices
            if expert in chosen:
                seen.append((position, (torch.nn.functional.silu(gate @ x) * (up @ x)).tolist()))
        n_seen.append(len(seen))
        name = f"model.layers.0.mlp.experts.{expert}"
        for neuron in range(24):
            expected = highest(seen, neuron, 3)
            places = found.positions[name][neuron]
            assert places[: len(expected)].tolist() == [position for _, position in expected]
            assert (places[len(expected) :] == -1).all()
            values = found.activations[name][neuron][: len(expected)]
            assert values.tolist() == pytest.approx([value for value, _ in expected], rel=1e-4, abs=1e-6)
    assert sum(n_seen) == 2 * len(read)


def test_a_decoder_reads_the_second_half_one_token_later() -> None:
    model = tiny_t5()
    sequences = whole_sequences(token_ids(2, 12))
    found = collect_top_activations(model, find_ffns(model), sequences, 12)
    encoder = found.positions["encoder.block.0.layer.1.DenseReluDense"]
    decoder = found.positions["decoder.block.0.layer.2.DenseReluDense"]
    of = lambda places: set(places[places >= 0].tolist())  # noqa: E731
    assert of(encoder) == {*range(1, 6), *range(13, 18)}
    assert of(decoder) == {*range(6, 11), *range(18, 23)}


def test_features_and_senseless_numbers_are_refused() -> None:
    model = mlp(6, 8, 3)
    with pytest.raises(OptionError, match="reads features"):
        collect_top_activations(
            model, find_ffns(model), TokenSequences.of(features(9, 6), torch.ones(9).bool(), "test")
        )
    llama = tiny_llama()
    with pytest.raises(OptionError, match="k must be"):
        collect_top_activations(llama, find_ffns(llama), whole_sequences(token_ids(2, 6)), 0)


def test_activations_that_are_not_finite_are_refused() -> None:
    model = tiny_llama()
    ffns = find_ffns(model)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3] = torch.nan
    with pytest.raises(CalibrationError, match="not finite"):
        collect_top_activations(model, ffns, whole_sequences(token_ids(2, 6)))
