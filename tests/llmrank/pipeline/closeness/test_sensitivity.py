"""Sensitivities against a textbook loop over copies of the model, block by block and in complete passes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

import llmrank.pipeline.closeness.sensitivity
from llmrank.errors import CalibrationError, MaskError, OptionError
from llmrank.execution import Execution
from llmrank.execution.recording import Recording
from llmrank.models import FFN, explicit_ffns, find_ffns
from llmrank.models.linear_map import matrix_of
from llmrank.pipeline.closeness.sensitivity import layer_sensitivities
from llmrank.prune.masks import Masks
from llmrank.text import TokenSequences, tokenise
from tests.llmrank.families import Family
from tests.llmrank.tiny_models import (
    HIDDEN,
    STRUCTURE,
    Snapshot,
    every_family,
    family_model,
    features,
    mlp,
    named_family,
    text,
    tiny_llama,
    tiny_t5,
    token_ids,
    tokenizer,
)


@pytest.fixture
def two_sequences_say_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmrank.pipeline.closeness.sensitivity.MOST_TOKENS", 1)


def third(ffns: tuple[FFN, ...]) -> Masks:
    """Make masks that remove every third neuron."""
    return Masks({name: torch.arange(layer.size) % 3 > 0 for name, layer in ffns.layers.items()})


def sequences_of(ids: torch.Tensor) -> TokenSequences:
    return tokenise(ids, None, len(ids), ids.shape[1])


def cut_copy(model: Any, name: str, keep: torch.Tensor) -> Any:
    """Make a copy whose down weights are zero for the removed neurons of one layer."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for consumer in find_ffns(twin).layers[name].output_maps:
            matrix_of(consumer.module)[:, ~keep] = 0.0
    return twin


def given(model: Any, row: torch.Tensor) -> dict[str, torch.Tensor]:
    """Make the inputs of one sequence without padding; an encoder-decoder continues the first half by the second."""
    if model.config.model_type == "mllama_text_model":
        # An image of zeros, so that the blocks for images are not skipped.
        return {"input_ids": row[None], "cross_attention_states": torch.zeros(1, 1, HIDDEN)}
    if not model.config.is_encoder_decoder:
        return {"input_ids": row[None]}
    half = len(row) // 2
    started = torch.cat([torch.zeros(1, dtype=torch.long), row[half:-1]])
    return {"input_ids": row[None, :half], "decoder_input_ids": started[None]}


@torch.no_grad()
def textbook(model: Any, masks: Masks, rows: list[torch.Tensor]) -> dict[str, float]:
    """Compute the divergence of softmax probabilities, sequence by sequence and token by token."""
    found = {}
    for name, keep in masks.items():
        twin, terms = cut_copy(model, name, keep), []
        for row in rows:
            p, q = (m(**given(m, row)).logits[0].double().softmax(-1) for m in (model, twin))
            terms += [float((a * (a / b).log()).sum()) for a, b in zip(p, q, strict=True)]
        found[name] = sum(terms) / len(terms)
    return found


@contextmanager
def no_record(*_: Any) -> Iterator[Recording]:
    yield Recording([])


def whole_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away the record of the blocks."""
    monkeypatch.setattr(llmrank.pipeline.closeness.sensitivity, "recording", no_record)


def calls_of(modules: list[nn.Module], run: Callable[[], Any]) -> list[int]:
    """Count how often each module computes (calls of a substitute do not count)."""
    counts = [0] * len(modules)
    inner = [next(m for m in module.modules() if not list(m.children())) for module in modules]

    def count(k: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            counts[k] += 1

        return hook

    handles = [module.register_forward_hook(count(k)) for k, module in enumerate(inner)]
    run()
    for handle in handles:
        handle.remove()
    return counts


@pytest.mark.usefixtures("two_sequences_say_enough")
@every_family
def test_both_methods_equal_the_textbook_loop(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    model = family_model(family)
    snapshot = Snapshot(model)
    ffns, ids = find_ffns(model), token_ids(3, 12)
    masks = third(ffns)
    found = layer_sensitivities(model, ffns, masks, sequences_of(ids), Execution(2))
    snapshot.assert_restored()
    assert list(found) == list(masks)
    assert all(value > 1e-5 for value in found.values())
    # Two of the three sequences are used.
    assert found == pytest.approx(textbook(model, masks, list(ids[:2])), rel=1e-3)
    whole_passes(monkeypatch)
    assert found == pytest.approx(layer_sensitivities(model, ffns, masks, sequences_of(ids), Execution(2)), rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_padding_does_not_count_nor_do_batches(batch_size: int) -> None:
    model = tiny_llama()
    ffns = find_ffns(model)
    masks = third(ffns)
    sequences = tokenise([text(5, 1), text(17, 2), text(11, 3)], tokenizer(), 3, 20)
    rows = [row[mask] for row, mask in zip(sequences.ids, sequences.mask, strict=True)]
    assert len({len(row) for row in rows}) == 3
    found = layer_sensitivities(model, ffns, masks, sequences, Execution(batch_size))
    assert found == pytest.approx(textbook(model, masks, rows), rel=1e-4)


def test_padding_of_the_decoder_does_not_count() -> None:
    model = tiny_t5()
    ffns, ids = find_ffns(model), token_ids(1, 12)
    padded = torch.cat([ids, torch.zeros(1, 4, dtype=torch.long)], dim=1)
    mask = torch.arange(16)[None] < 12
    sequences = TokenSequences.of(padded, mask, "test")
    found = layer_sensitivities(model, ffns, third(ffns), sequences)
    # The encoder reads 8 tokens, the decoder the 4 that follow.
    row = given(model, torch.cat([ids[0], torch.zeros(4, dtype=torch.long)]))
    for name, keep in third(ffns).items():
        twin = cut_copy(model, name, keep)
        with torch.no_grad():
            p, q = (m(**row).logits[0, :4].double().softmax(-1) for m in (model, twin))
        assert found[name] == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-4)


@pytest.mark.usefixtures("two_sequences_say_enough")
def test_blocks_before_the_pruned_layer_compute_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama(num_hidden_layers=4)
    ffns = find_ffns(model)
    blocks = list(model.model.layers)

    def run() -> None:
        layer_sensitivities(model, ffns, third(ffns), sequences_of(token_ids(3, 8)))

    # For each of two sequences: the dense pass, and one pass for every FFN up to this block.
    assert calls_of(blocks, run) == [2 * (1 + k) for k in range(1, 5)]
    whole_passes(monkeypatch)
    assert calls_of(blocks, run) == [2 * (1 + 4)] * 4


class Blocks(nn.Module):
    """Three FFNs in a row, with trouble between them."""

    def __init__(self, trouble: str) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([mlp(6, 12, 6, seed=k) for k in range(3)])
        self.trouble = trouble

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for k, block in enumerate(self.blocks):
            x = block(x)
            if self.trouble == "a copy" and k == 0:
                x = x + 1.0
            elif self.trouble == "in place" and k == 0:
                x.mul_(2.0)
            elif self.trouble == "twice" and k == 2:
                for again in self.blocks:
                    x = again(x)
            elif self.trouble == "left out" and k == 1:
                return x + self.blocks[2][2].bias
            elif self.trouble == "after the last" and k == 2:
                x.mul_(2.0)
        return x


@pytest.mark.parametrize(
    ("trouble", "alone"),
    [
        ("none", True),
        ("after the last", True),
        ("a copy", False),
        ("in place", False),
        ("twice", False),
        ("left out", False),
    ],
)
def test_complete_passes_where_outputs_of_blocks_cannot_be_reused(trouble: str, alone: bool) -> None:
    model = Blocks(trouble)
    ffns, x = find_ffns(model), features(20, 6)
    masks = third(ffns)
    found: dict[str, float] = {}
    counts = calls_of(
        list(model.blocks), lambda: found.update(layer_sensitivities(model, ffns, masks, sequences_of(x)))
    )
    assert (counts[0] == 2) is alone
    for name, keep in masks.items():
        with torch.no_grad():
            dense, cut = model(x).double(), cut_copy(model, name, keep)(x).double()
        shares = (cut - dense).square().sum(-1) / dense.square().sum(-1)
        assert found[name] == pytest.approx(float(shares.mean()), rel=1e-4, abs=1e-12)


def test_hooks_on_blocks_act_once() -> None:
    """A remembered output goes through the hooks of its block as a computed one does."""
    model, ids = tiny_llama(), token_ids(2, 8)
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _m, _i, output: output * 1.5)
    found = layer_sensitivities(model, find_ffns(model), third(find_ffns(model)), sequences_of(ids))
    assert found == pytest.approx(textbook(model, third(find_ffns(model)), list(ids)), rel=1e-4)


def test_a_forward_attribute_of_a_block_is_restored() -> None:
    """Libraries that place or trace modules set such attributes."""
    model, ids = tiny_llama(), token_ids(2, 8)
    block = model.model.layers[0]
    honest = block.forward
    own: list[Any] = []

    def forward(*args: Any, **kwargs: Any) -> Any:
        own.append(args)
        return honest(*args, **kwargs)

    block.forward = forward
    found = layer_sensitivities(model, find_ffns(model), third(find_ffns(model)), sequences_of(ids))
    assert vars(block)["forward"] is forward
    # For each of two sequences: the dense pass, and one pass for its own FFN.
    assert len(own) == 4
    del block.forward
    assert found == layer_sensitivities(model, find_ffns(model), third(find_ffns(model)), sequences_of(ids))


def test_without_a_head_it_is_the_relative_change_of_the_last_hidden_state() -> None:
    model, ids = tiny_llama().model, token_ids(2, 10)
    ffns = find_ffns(model)
    masks = third(ffns)
    found = layer_sensitivities(model, ffns, masks, sequences_of(ids))
    for name, keep in masks.items():
        with torch.no_grad():
            dense, cut = (m(input_ids=ids).last_hidden_state.double() for m in (model, cut_copy(model, name, keep)))
        shares = (cut - dense).square().sum(-1) / dense.square().sum(-1)
        assert found[name] == pytest.approx(float(shares.mean()), rel=1e-4)


def test_tokens_without_output_are_left_out() -> None:
    model = nn.Sequential(*mlp(4, 8, 5), nn.ReLU())
    x = features(64, 4)
    with torch.no_grad():
        model[2].bias.fill_(-0.3)
        dense = model(x)
    assert 0 < int((dense == 0).all(1).sum()) < 64
    ffns = find_ffns(model)
    (found,) = layer_sensitivities(model, ffns, third(ffns), sequences_of(x)).values()
    with torch.no_grad():
        cut = cut_copy(model, "0", third(ffns)["0"])(x)
    counts = dense.square().sum(1) > 0
    shares = (cut - dense)[counts].square().sum(1) / dense[counts].square().sum(1)
    assert found == pytest.approx(float(shares.mean()), rel=1e-4)


def test_one_output_for_a_sequence_has_no_padding() -> None:
    """A classifier gives one distribution for a sequence; the single number of a regression is not a distribution."""
    import transformers

    config = family_model(named_family("BERT")).config
    sequences = tokenise([text(5, 1), text(9, 2)], tokenizer(), 2, 12)
    for n_labels in (3, 1):
        config.num_labels = n_labels
        torch.manual_seed(0)
        model = transformers.BertForSequenceClassification(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.3)
        ffns = find_ffns(model)
        masks = third(ffns)
        found = layer_sensitivities(model, ffns, masks, sequences, Execution(2))
        for name, keep in masks.items():
            inputs = {"input_ids": sequences.ids, "attention_mask": sequences.mask.long()}
            with torch.no_grad():
                y, z = (m(**inputs).logits.double() for m in (model, cut_copy(model, name, keep)))
            p, q = y.softmax(-1), z.softmax(-1)
            wanted = (p * (p / q).log()).sum(-1) if n_labels > 1 else ((z - y) / y).square().squeeze(-1)
            assert found[name] == pytest.approx(float(wanted.mean()), rel=1e-3)


def test_masks_that_remove_nothing_cost_nothing() -> None:
    model = tiny_llama()
    ffns = find_ffns(model)
    full = Masks.full(ffns.sizes)

    def run() -> dict[str, float]:
        return layer_sensitivities(model, ffns, full, sequences_of(token_ids()))

    assert run() == dict.fromkeys(full, 0.0)
    assert calls_of([model], run) == [0]


def test_tokens_of_probability_zero_add_nothing() -> None:
    model, ids = tiny_llama(), token_ids(2, 8)
    plain = layer_sensitivities(model, find_ffns(model), third(find_ffns(model)), sequences_of(ids))

    def forbid(_module: nn.Module, _inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        return torch.cat([logits, torch.full_like(logits[..., :5], -math.inf)], dim=-1)

    with_forbidden = tiny_llama()
    with_forbidden.lm_head.register_forward_hook(forbid)
    found = layer_sensitivities(
        with_forbidden, find_ffns(with_forbidden), third(find_ffns(with_forbidden)), sequences_of(ids)
    )
    assert found == pytest.approx(plain, rel=1e-5)


def test_half_precision_is_compared_in_float32() -> None:
    model, ids = tiny_llama().to(torch.bfloat16), token_ids(2, 12)
    ffns = find_ffns(model)
    found = layer_sensitivities(model, ffns, third(ffns), sequences_of(ids))
    assert found == pytest.approx(textbook(model, third(ffns), list(ids)), rel=0.05)


def test_inference_mode_does_not_matter() -> None:
    model, ids = tiny_llama(), token_ids(2, 8)
    ffns = find_ffns(model)
    expected = layer_sensitivities(model, ffns, third(ffns), sequences_of(ids))
    with torch.inference_mode():
        found = layer_sensitivities(model, ffns, third(ffns), sequences_of(ids))
    assert found == pytest.approx(expected, rel=1e-5)


def test_progress_counts_batches_times_layers() -> None:
    seen: dict[str, int] = {}

    def progress(items: Any, description: str) -> Any:
        seen[description] = len(items)
        return items

    model = tiny_llama()
    ffns = find_ffns(model)
    layer_sensitivities(model, ffns, third(ffns), sequences_of(token_ids(3)), Execution(2, progress))
    assert seen == {"Measuring sensitivities": 4}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_output_that_is_not_finite_names_the_layer(bad: float) -> None:
    model = tiny_llama()
    model.train()
    with torch.no_grad():
        # The output of FFN 1 is finite only while it has all its neurons.
        model.model.layers[1].mlp.down_proj.register_forward_hook(
            lambda _m, inputs, output: output * (bad if bool((inputs[0] == 0).all(-2).any()) else 1.0)
        )
    snapshot = Snapshot(model)
    ffns = find_ffns(model)
    with pytest.raises(CalibrationError, match=r"sensitivity of model\.layers\.1\.mlp is not finite"):
        layer_sensitivities(model, ffns, third(ffns), sequences_of(token_ids(2, 8)))
    snapshot.assert_restored()


def test_output_that_is_zero_everywhere_is_refused() -> None:
    model = mlp(4, 6, 3)
    with torch.no_grad():
        model[2].weight.zero_()
        model[2].bias.zero_()
    ffns = find_ffns(model)
    with pytest.raises(CalibrationError, match=r"sensitivity of 0 is not finite: .* zero everywhere"):
        layer_sensitivities(model, ffns, third(ffns), sequences_of(features(20, 4)))


@pytest.mark.parametrize("call", range(1, 8))
def test_an_exception_leaves_the_model_unchanged(call: int) -> None:
    model = tiny_llama(num_hidden_layers=3)
    model.train()
    snapshot = Snapshot(model)
    ffns = find_ffns(model)
    calls = 0

    def interrupt(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt

    handle = model.model.layers[2].mlp.down_proj.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        layer_sensitivities(model, ffns, third(ffns), sequences_of(token_ids(2, 8)))
    handle.remove()
    snapshot.assert_restored()
    assert not any("forward" in vars(module) for module in model.modules())


def test_explicit_ffns_and_masks_of_another_model_are_refused() -> None:
    model = tiny_llama()
    ffns, sequences = find_ffns(model), sequences_of(token_ids())
    explicit = explicit_ffns(model, STRUCTURE)
    with pytest.raises(OptionError, match="sensitivities need whole FFNs"):
        layer_sensitivities(model, explicit, third(explicit), sequences)
    with pytest.raises(MaskError, match="do not fit this model"):
        layer_sensitivities(model, ffns, Masks({"mlp": [1, 0]}), sequences)


def test_short_sequences_are_used_until_they_hold_enough_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = tiny_llama(), token_ids(9, 12)
    ffns = find_ffns(model)
    # With one token at most, two sequences are used all the same.
    for most, count in ((1, 2), (13, 2), (60, 5), (61, 6), (1_000_000, 9)):
        expected = textbook(model, third(ffns), list(ids[:count]))
        monkeypatch.setattr("llmrank.pipeline.closeness.sensitivity.MOST_TOKENS", most)
        found = layer_sensitivities(model, ffns, third(ffns), sequences_of(ids))
        assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("length", "count"), [(64, 32), (63, 33)])
def test_by_default_some_two_thousand_tokens_are_enough(length: int, count: int) -> None:
    model, ids = tiny_llama(num_hidden_layers=1), token_ids(40, length)
    ffns = find_ffns(model)
    found, fewer, same = (
        layer_sensitivities(model, ffns, third(ffns), sequences_of(ids[:n]), Execution(40))
        for n in (40, count - 1, count)
    )
    assert fewer != found == same


def test_five_hundred_and_twelve_rows_of_features_are_enough() -> None:
    model, x = mlp(4, 8, 3), features(600, 4)
    ffns = find_ffns(model)
    (found,) = layer_sensitivities(model, ffns, third(ffns), sequences_of(x)).values()
    with torch.no_grad():
        dense, cut = model(x).double(), cut_copy(model, "0", third(ffns)["0"])(x).double()
    shares = (cut - dense).square().sum(1) / dense.square().sum(1)
    means = {n: float(shares[:n].mean()) for n in (256, 512, 600)}
    assert len({round(mean, 3) for mean in means.values()}) == 3
    assert found == pytest.approx(means[512], rel=1e-4)
