"""How 2SSP divides an amount, which neurons and attentions it removes, and what its row in the table is measured on."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import blocks
from benchmarks.two_ssp import TwoSSP, greedily, without
from llmrank.models import FFNs, find_ffns
from llmrank.models.costs import ModelCosts
from llmrank.prune.masks import Masks
from llmrank.surgery.equivalence import as_masked
from llmrank.text import CalibrationTokens, tokenise
from tests.llmrank.tiny_models import logits, tiny_llama, token_ids

IDS = token_ids(2, 12)


def parameters_of(model: Any, share: float) -> int:
    """Return a share of the parameters of all blocks."""
    return round(share * sum(p.numel() for p in model.model.layers.parameters()))


@pytest.mark.parametrize(("share", "n_attentions"), [(0.2, 1), (0.5, 8), (0.7, 15)])
def test_an_amount_is_divided_between_ffns_and_attentions(share: float, n_attentions: int) -> None:
    # The shape of SmolLM2: an FFN has three times the parameters of an attention, so attentions go by the square of the share.
    shape = {"hidden_size": 18, "intermediate_size": 48, "num_attention_heads": 9, "num_key_value_heads": 3}
    model = tiny_llama(**shape, head_dim=2, num_hidden_layers=30)
    plan = TwoSSP(model, find_ffns(model), parameters_of(model, share))
    assert plan.n_attentions == n_attentions
    assert plan.size_of_attention == 864
    assert plan.share_of_neurons * 30 * 2592 == pytest.approx(parameters_of(model, share) - n_attentions * 864)


def test_an_amount_that_is_less_than_its_attentions_is_refused() -> None:
    model = tiny_llama(hidden_size=64, head_dim=16)  # attentions are larger than FFNs
    with pytest.raises(
        ValueError, match=r"2SSP cannot remove .*: it would remove 1 attentions, and -1.5% of the neurons"
    ):
        TwoSSP(model, find_ffns(model), parameters_of(model, 0.3))


def test_neurons_go_by_the_mean_over_sequences_of_their_norms() -> None:
    model = tiny_llama()
    ffns, seen = find_ffns(model), []
    down = model.model.layers[0].mlp.down_proj
    with torch.no_grad():
        hook = down.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
        logits(model, IDS)
        hook.remove()
    masks = TwoSSP(model, ffns, parameters_of(model, 0.3)).masks(tokenise(IDS, None, 2, 12))
    norms = seen[0].norm(dim=1).mean(0)  # one of each sequence
    mask = masks[ffns[0].name]
    assert 0 < mask.sum() < len(mask)
    assert norms[mask].min() >= norms[~mask].max()


def test_attentions_return_nothing_within_the_context_and_come_back() -> None:
    model = tiny_llama(num_hidden_layers=3)
    ffns, before = find_ffns(model), logits(model, IDS)
    plan = TwoSSP(model, ffns, parameters_of(model, 0.6))
    gone = plan.attentions_in_turn(Masks.full(ffns.sizes), tokenise(IDS, None, 2, 12))
    assert len(gone) == plan.n_attentions > 0
    with without(gone):
        inside, copied = logits(model, IDS), copy.deepcopy(model)
    assert torch.equal(logits(model, IDS), before)
    with torch.no_grad():
        for attention in gone:
            copied.get_submodule(attention.stages[-1][0].name).weight.add_(1.0)
            model.get_submodule(attention.stages[-1][0].name).weight.zero_()
    assert torch.equal(inside, logits(model, IDS))
    assert torch.equal(inside, logits(copied, IDS))  # what a copy learns brings no attention back


def test_attentions_go_by_the_loss_without_the_removed_neurons() -> None:
    model = tiny_llama(num_hidden_layers=4)
    ffns, sequences = find_ffns(model), tokenise(IDS, None, 2, 12)
    plan = TwoSSP(model, ffns, parameters_of(model, 0.4))
    masks = Masks({name: torch.arange(size) < 3 for name, size in ffns.sizes.items()})

    def loss(attention: Any) -> float:
        with without([attention]), as_masked(ffns, masks):
            return float(model(IDS, labels=IDS).loss)

    with torch.no_grad():
        expected = min(plan.attentions, key=loss).name
    assert plan.attentions_in_turn(masks, sequences)[0].name == expected
    with torch.no_grad():
        full = Masks.full(ffns.sizes)
        assert plan.attentions_in_turn(full, sequences)[0].name != expected  # so the masks are what decides here


def test_parts_go_in_turn_by_what_is_lost_with_those_that_are_gone() -> None:
    losses = {frozenset("a"): 1.0, frozenset("b"): 2.0, frozenset("c"): 3.0, frozenset("ab"): 9.0, frozenset("ac"): 4.0}
    found = greedily("abc", 2, lambda gone: losses[frozenset(gone)])  # type: ignore[arg-type]
    assert "".join(found) == "ac"  # type: ignore[arg-type]


def test_the_healed_row_learns_from_the_dense_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama(num_hidden_layers=3)
    ffns, dense = find_ffns(model), logits(model, IDS)
    seen: dict[str, torch.Tensor] = {}

    def healed(study: Any, teacher: Any) -> dict[str, Any]:
        seen.update(teacher=logits(teacher, IDS), student=logits(study.model, IDS))
        return {}

    monkeypatch.setattr(blocks, "healed_losses", healed)
    sequences = tokenise(IDS, None, 2, 12)
    study = Tiny(model, ffns, CalibrationTokens(sequences, None, None))
    row = blocks.row_of_2ssp(study, parameters_of(model, 0.6), blocks.HEALED)  # type: ignore[arg-type]
    assert row["left_out"]
    assert torch.equal(seen["teacher"], dense)
    assert not torch.allclose(seen["student"], dense)
    assert torch.equal(logits(model, IDS), dense)


class Tiny:
    """What a row reads of a study."""

    def __init__(self, model: Any, ffns: FFNs, tokens: CalibrationTokens) -> None:
        self.model, self.ffns, self.tokens = model, ffns, {"default": tokens}
        self.prepared = SimpleNamespace(costs=ModelCosts(model, ffns))
