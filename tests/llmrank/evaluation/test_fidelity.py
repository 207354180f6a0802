"""Divergence, agreement and continuations, against loops over single tokens."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import llmrank.evaluation.fidelity
from llmrank.errors import CalibrationError, OptionError, UnsupportedModelError
from llmrank.evaluation.fidelity import Continuations, continuations, divergences, fidelity
from llmrank.execution import Execution
from llmrank.text import TokenSequences, tokenise
from tests.llmrank.tiny_models import (
    Snapshot,
    disturbed,
    family_model,
    logits,
    mlp,
    named_family,
    padded_sequences,
    tiny_llama,
    tiny_t5,
    token_ids,
)

NAMES = ["Llama, SmolLM2", "GPT-2", "OPT", "BLOOM"]


@torch.no_grad()
def next_token(model: Any, row: torch.Tensor, known: int) -> torch.Tensor:
    """Return the probabilities at position `known` of one unpadded sequence, given the tokens before it."""
    if model.config.is_encoder_decoder:
        half = len(row) // 2
        start = torch.tensor([[0, *row[half:known].tolist()]])
        out = model(input_ids=row[None, :half], decoder_input_ids=start).logits[0, -1]
    else:
        out = model(input_ids=row[None, :known]).logits[0, -1]
    return out.double().softmax(0)


def textbook(dense: Any, model: Any, rows: list[torch.Tensor], first: Callable[[int], int]) -> list[list[float]]:
    """Return the divergence and the agreement of every predicted token of every sequence."""
    terms, same = [], []
    for row in rows:
        pairs = [(next_token(dense, row, k), next_token(model, row, k)) for k in range(first(len(row)), len(row))]
        terms.append([float((p * (p / q).log()).sum()) for p, q in pairs])
        same.append([float(p.argmax() == q.argmax()) for p, q in pairs])
    return [terms, same]


def error_of(groups: list[list[float]]) -> float:
    mean = sum(map(sum, groups)) / sum(map(len, groups))
    spread = sum((sum(group) - mean * len(group)) ** 2 for group in groups)
    return math.sqrt(spread * len(groups) / (len(groups) - 1)) / sum(map(len, groups))


@pytest.mark.parametrize("values", [2**20, 300])
@pytest.mark.parametrize("name", NAMES)
def test_divergence_and_agreement_equal_a_loop_over_tokens(
    name: str, values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llmrank.evaluation.fidelity, "VALUES_AT_ONCE_ON_CPU", values)
    dense, data = family_model(named_family(name)), padded_sequences()
    model = disturbed(dense)
    terms, same = textbook(dense, model, [r[m] for r, m in zip(data.ids, data.mask, strict=True)], lambda _: 1)
    for batch_size in (1, 2, 5):
        found = fidelity(dense, model, data, Execution(batch_size))
        for estimate, groups in ((found.divergence, terms), (found.agreement, same)):
            assert estimate.count == sum(map(len, groups)) == 11 * 3 + 7 + 4
            assert estimate.value == pytest.approx(sum(map(sum, groups)) / estimate.count, rel=1e-3)
            assert estimate.error == pytest.approx(error_of(groups), rel=1e-3)
    assert found.divergence.value > 0.01
    assert 0.0 < found.agreement.value < 1.0


def test_encoder_decoders_are_compared_on_their_second_half() -> None:
    dense, data = tiny_t5(), tokenise(token_ids(3, 10), None, 3, 10)
    model = disturbed(dense)
    terms, same = textbook(dense, model, list(data.ids), lambda length: length // 2)
    found = fidelity(dense, model, data, Execution(2))
    assert found.divergence.count == 15
    assert found.divergence.value == pytest.approx(sum(map(sum, terms)) / 15, rel=1e-3)
    assert found.agreement.value == pytest.approx(sum(map(sum, same)) / 15)


def test_a_model_agrees_with_itself_and_is_not_changed() -> None:
    model = tiny_llama(attention_dropout=0.5)
    model.train()
    snapshot = Snapshot(model)
    found = fidelity(model, model, padded_sequences(), Execution(2))
    assert found.divergence.value == 0.0
    assert (found.agreement.value, found.agreement.error) == (1.0, 0.0)
    assert continuations(model, model, padded_sequences(), 5, 4, 6).equal_texts.value == 1.0
    snapshot.assert_restored()
    assert model.training


def test_divergence_is_not_symmetric() -> None:
    dense = tiny_llama()
    model = disturbed(dense, 0.3)
    there, back = fidelity(dense, model, padded_sequences()), fidelity(model, dense, padded_sequences())
    assert there.divergence.value != pytest.approx(back.divergence.value, rel=0.01)
    assert there.agreement == back.agreement


def test_half_precision_is_compared_in_single_precision() -> None:
    dense, data = tiny_llama(), padded_sequences()
    half = copy.deepcopy(dense).to(torch.bfloat16)
    wanted = fidelity(dense, copy.deepcopy(half).float(), data)
    found = fidelity(dense, half, data)
    assert 0 < found.divergence.value < 0.1
    assert wanted.divergence.value < 0.1
    total = 0.0
    for row, mask in zip(data.ids, data.mask, strict=True):
        p, q = (logits(one, row[None, mask])[0, :-1].double().softmax(-1) for one in (dense, half))
        total += float((p * (p / q).log()).sum())
    assert found.divergence.value == pytest.approx(total / 44, rel=1e-3)
    assert fidelity(half, half, data).divergence.value == pytest.approx(0.0, abs=1e-7)


def test_divergences_by_hand() -> None:
    p = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]], dtype=torch.float64)
    q = torch.tensor([[0.25, 0.75, 0.0], [0.2, 0.3, 0.5]], dtype=torch.float64)
    found = divergences(p.log(), q.log() + torch.tensor([[3.0], [-1.0]]))
    assert found[0] == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), rel=1e-12)
    assert found[1] == pytest.approx(0.0, abs=1e-12)
    assert found.dtype == torch.float64
    assert divergences(p[:0], q[:0]).shape == (0,)
    impossible = divergences(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[1.0, 0.0]]).log())
    assert impossible[0] == math.inf


@pytest.mark.parametrize("side", ["dense", "model"])
def test_predictions_that_hold_nan_are_refused(side: str) -> None:
    dense = tiny_llama()
    model = copy.deepcopy(dense)
    with torch.no_grad():
        (dense if side == "dense" else model).lm_head.weight[5:] = math.nan
    with pytest.raises(CalibrationError, match="not finite"):
        fidelity(dense, model, padded_sequences())


def test_vocabularies_of_different_sizes_are_refused() -> None:
    with pytest.raises(OptionError, match="predicts 64 tokens and the other model 70"):
        fidelity(tiny_llama(), tiny_llama(vocab_size=70), padded_sequences())


@pytest.mark.parametrize("make", [lambda: family_model(named_family("BERT")), lambda: mlp(4, 6, 2)])
def test_models_without_next_token_prediction_are_refused(make: Any) -> None:
    for pair in ((tiny_llama(), make()), (make(), tiny_llama())):
        with pytest.raises(UnsupportedModelError, match="no divergence"):
            fidelity(*pair, padded_sequences())
        with pytest.raises(UnsupportedModelError, match="no continuation"):
            continuations(*pair, padded_sequences())


def test_sequences_of_single_tokens_are_refused() -> None:
    ids, mask = token_ids(2, 4), torch.tensor([[True, False, False, False]] * 2)
    with pytest.raises(CalibrationError, match="no token"):
        fidelity(tiny_llama(), tiny_llama(), TokenSequences.of(ids, mask, "test"))


@torch.no_grad()
def greedy(model: Any, prompt: torch.Tensor, new: int, ends: set[int]) -> list[int]:
    """Token by token, without a cache."""
    ids, wanted = prompt[None], [0]
    for _ in range(new):
        if model.config.is_encoder_decoder:
            out = model(input_ids=ids, decoder_input_ids=torch.tensor([wanted])).logits
        else:
            out = model(input_ids=torch.cat([ids, torch.tensor([wanted[1:]], dtype=torch.long)], 1)).logits
        wanted.append(int(out[0, -1].argmax()))
        if wanted[-1] in ends:
            break
    return wanted[1:]


def shares(wanted: list[int], found: list[int]) -> tuple[float, float, float]:
    longer = max(len(wanted), len(found))
    prefix = 0
    while prefix < min(len(wanted), len(found)) and wanted[prefix] == found[prefix]:
        prefix += 1
    equal = sum(wanted[k] == found[k] for k in range(min(len(wanted), len(found))))
    return prefix / longer, equal / longer, float(wanted == found)


@pytest.mark.parametrize("name", [*NAMES, "T5"])
@pytest.mark.parametrize("early", [False, True])
def test_continuations_equal_loops_without_cache(name: str, early: bool) -> None:
    dense = family_model(named_family(name))
    model = disturbed(dense, 0.02)
    data = tokenise(token_ids(9, 12), None, 9, 12)
    # Tokens that occur in continuations of the dense model.
    ends = {greedy(dense, data.ids[k, :5], 7, set())[4 - 2 * k] for k in (0, 1)} if early else {2}
    for one in (dense, model):
        one.generation_config.eos_token_id = sorted(ends)
    pairs = [[greedy(one, row[:5], 7, ends) for one in (dense, model)] for row in data.ids[:8]]
    assert early == any(len(continuation) < 7 for pair in pairs for continuation in pair)
    wanted = [shares(*pair) for pair in pairs]
    for batch_tokens in (1, 40, 4096):
        found = continuations(dense, model, data, 8, 5, 7, batch_tokens)
        estimates = (found.common_prefix, found.equal_tokens, found.equal_texts)
        for estimate, values in zip(estimates, zip(*wanted, strict=True), strict=True):
            assert estimate.count == 8
            assert estimate.value == pytest.approx(sum(values) / 8)
    assert found.common_prefix.value <= found.equal_tokens.value


def test_shares_refer_to_the_longer_continuation(monkeypatch: pytest.MonkeyPatch) -> None:
    said = iter([[[7, 8, 9, 2], [7, 2]], [[7, 5, 9], [7, 2]]])
    monkeypatch.setattr(llmrank.evaluation.fidelity, "_continue", lambda *_: next(said))
    found = continuations(tiny_llama(), tiny_llama(), padded_sequences(), 2, 5, 4)
    assert found.common_prefix.value == (1 / 4 + 2 / 2) / 2
    assert found.equal_tokens.value == (2 / 4 + 2 / 2) / 2
    assert found.equal_texts.value == 0.5
    assert found.equal_texts.error == 0.5


def test_generation_settings_of_a_model_change_nothing_and_stay() -> None:
    dense = tiny_llama()
    data = tokenise(token_ids(4, 12), None, 4, 12)
    model = disturbed(dense, 0.02)
    wanted = continuations(dense, model, data, 4, 5, 7)
    settings = model.generation_config
    settings.do_sample, settings.temperature, settings.repetition_penalty, settings.num_beams = True, 3.0, 5.0, 2
    before = copy.deepcopy(settings.to_dict())
    assert continuations(dense, model, data, 4, 5, 7) == wanted
    assert model.generation_config is settings
    assert settings.to_dict() == before


def test_end_tokens_come_from_the_generation_settings_or_else_the_configuration() -> None:
    dense, data = tiny_llama(), tokenise(token_ids(4, 12), None, 4, 12)
    model = disturbed(dense, 0.02)
    end, _, other, *_ = greedy(dense, data.ids[1, :5], 7, set())

    def found(of_settings: int | None, of_config: int | None) -> Continuations:
        for one in (dense, model):
            one.generation_config.eos_token_id, one.config.eos_token_id = of_settings, of_config
        return continuations(dense, model, data, 4, 5, 7)

    assert found(end, None) == found(None, end) == found(end, other)
    assert len({found(end, None), found(other, None), found(None, None)}) == 3


@pytest.mark.parametrize(("batch_tokens", "rows"), [(1, 1), (35, 2), (40, 3), (4096, 8)])
def test_batches_hold_no_more_tokens_than_requested(batch_tokens: int, rows: int) -> None:
    """A prompt has 5 tokens and a continuation 7."""
    model, data = tiny_llama(), tokenise(token_ids(8, 12), None, 8, 12)
    seen: list[int] = []
    model.register_forward_pre_hook(lambda _m, _args, given: seen.append(len(given["input_ids"])), with_kwargs=True)
    assert continuations(model, model, data, 8, 5, 7, batch_tokens).equal_texts.count == 8
    assert max(seen) == rows


def test_a_model_without_a_padding_token_continues_in_the_same_way() -> None:
    dense, data = tiny_llama(), tokenise(token_ids(4, 12), None, 4, 12)
    model = disturbed(dense, 0.02)
    end, *_ = greedy(dense, data.ids[1, :5], 7, set())
    found = []
    for padding in (0, None):
        for one in (dense, model):
            one.generation_config.eos_token_id = end
            one.generation_config.pad_token_id = one.config.pad_token_id = padding
        found.append(continuations(dense, model, data, 4, 5, 7))
    assert found[0] == found[1]


def test_prompts_are_the_beginnings_without_padding() -> None:
    """The second of five sequences has 8 tokens and the fourth 5."""
    model = tiny_llama()
    assert continuations(model, model, padded_sequences(), 16, 5, 2).equal_texts.count == 5
    assert continuations(model, model, padded_sequences(), 16, 6, 2).equal_texts.count == 4
    assert continuations(model, model, padded_sequences(), 2, 6, 2).equal_texts.count == 2
    # The first sequences without padding, at any position.
    late = padded_sequences()
    late = TokenSequences.of(late.ids[[3, 1, 0, 2, 4]], late.mask[[3, 1, 0, 2, 4]], "test")
    assert continuations(model, model, late, 2, 6, 2).equal_texts.count == 2
    for length in (13, 50):
        with pytest.raises(CalibrationError, match=f"has {length} tokens for a prompt"):
            continuations(model, model, padded_sequences(), 16, length, 2)


@pytest.mark.parametrize("name", ["prompts", "prompt_length", "new_tokens"])
def test_numbers_below_one_are_refused(name: str) -> None:
    with pytest.raises(OptionError, match=f"{name} must be an integer >= 1"):
        continuations(tiny_llama(), tiny_llama(), padded_sequences(), **{name: 0})


def test_more_tokens_than_a_model_takes_are_refused() -> None:
    with pytest.raises(OptionError, match="more than the 64"):
        continuations(tiny_llama(), tiny_llama(), padded_sequences(), 4, 60, 5)


def test_tokens_of_another_vocabulary_are_refused() -> None:
    data = tokenise(torch.full((2, 8), 70), None, 2, 8)
    for compare in (fidelity, lambda *pair: continuations(*pair, 2, 4, 2)):
        with pytest.raises(CalibrationError, match="another tokenizer"):
            compare(tiny_llama(), tiny_llama(), data)
