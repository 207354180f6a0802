"""Every scorer, budget, repair, form and evaluation on simulated devices: the masks and the numbers of the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from llmrank import prune_model
from llmrank.evaluation.fidelity import continuations, fidelity
from llmrank.evaluation.last_word import Passage, last_word
from llmrank.evaluation.perplexity import complete, perplexity
from llmrank.evaluation.token_losses import token_losses
from llmrank.execution import Execution
from llmrank.inspection.meaning.meanings import find_meanings
from llmrank.models import find_ffns
from llmrank.models.forward import input_device
from llmrank.pipeline import BasePipeline, CalibrationText
from llmrank.pipeline.registry import SCORERS, make_pruner, make_repair, make_scorer
from llmrank.score.expert_scorers import ExpertScorer
from tests.devices import FIRST, SECOND
from tests.llmrank.devices import on_two
from tests.llmrank.pipeline.test_devices import WRITTEN, same_outcome
from tests.llmrank.plain_pipelines import ChainedFFNPipeline, IsolatedFFNPipeline, ResidualFFNPipeline
from tests.llmrank.tiny_mixtures import tiny_mixture
from tests.llmrank.tiny_models import logits, text, tiny_llama, token_ids, tokenizer, whole_sequences

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("two_devices")]  # they answer every operation in Python

PLACES: dict[str, Callable[[Any], Any]] = {"one": lambda model: model.to(FIRST), "two": on_two}
DEVICES = {"one": {FIRST}, "two": {FIRST, SECOND}}
EXPERT_SCORERS = [name for name, scorer in SCORERS.items() if issubclass(scorer, ExpertScorer)]
# Options of the ranks, which decide where and how a graph is ranked.
RANKS = [
    *("wpr:theta=0.5", "wpr:solver=power", "wpr:backend=torch", "wpr:backend=scipy"),
    *("wpr:dtype=float64", "wpr:edges=energy", "mpr:zero_lowest=0.3", "mpr:backend=dense", "fbpr:theta=0.5"),
]
OPTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    **{s: (lambda s=s: {"scorer": make_scorer(s)}) for s in (*SCORERS, *RANKS) if s not in EXPERT_SCORERS},
    **{
        p: (lambda p=p: {"pruner": make_pruner(p)})
        for p in (
            "local:amount=0.3,amount_of=parameters",
            "local:amount=3",
            "global:amount=0.3",
            "global:normalize=robust,amount_of=flops",
            "global:amount_of=ffn-bytes",
            "sensitivity:amount=0.3",
        )
    },
    **{
        r: (lambda r=r: {"repair": make_repair(r)})
        for r in ("bias", "lstsq", "lstsq:damping=0.01", "lstsq:target=output")
    },
    **{f: (lambda f=f: {"form": f}) for f in ("zero", "mask")},
    "padded": lambda: {"form": "padded"},
    "evaluated": lambda: {"evaluation": token_ids(3, seed=1)},
}


def chained(model: Any, options: dict[str, Any]) -> BasePipeline:
    return ChainedFFNPipeline(model, None, calibration=token_ids(4), **options)


@pytest.mark.parametrize(("name", "place"), [(name, [*PLACES][k % 2]) for k, name in enumerate(OPTIONS)])
def test_every_component_gives_the_masks_of_the_cpu(name: str, place: str) -> None:
    model = PLACES[place](tiny_llama())
    assert {parameter.device for parameter in model.parameters()} == DEVICES[place]
    assert input_device(model) == FIRST
    same_outcome(chained(model, OPTIONS[name]()), chained(tiny_llama(), OPTIONS[name]()))
    # Pruning and repairing move no parameter.
    assert {parameter.device for parameter in model.parameters()} == DEVICES[place]


TOPOLOGIES: dict[str, Callable[[Any], BasePipeline]] = {
    "isolated": lambda model: IsolatedFFNPipeline(model, None, calibration=token_ids(4)),
    "residual": lambda model: ResidualFFNPipeline(model, None, calibration=token_ids(4)),
    "attention": lambda model: ResidualFFNPipeline(model, None, attention=True, calibration=token_ids(4)),
    "written": lambda model: ChainedFFNPipeline(model, tokenizer(), calibration=WRITTEN),
    "batches": lambda model: ChainedFFNPipeline(model, None, calibration=CalibrationText(token_ids(4), batch_size=2)),
}


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_every_topology_on_one_device(name: str) -> None:
    same_outcome(TOPOLOGIES[name](tiny_llama().to(FIRST)), TOPOLOGIES[name](tiny_llama()))


def test_a_device_that_is_asked_for_holds_the_pruned_model() -> None:
    pruned = prune_model(tiny_llama(), None, 0.3, calibration=token_ids(4), device=FIRST)
    reference = prune_model(tiny_llama(), None, 0.3, calibration=token_ids(4))
    assert {parameter.device for parameter in pruned.model.parameters()} == {FIRST}
    assert pruned.report.model["device"] == str(FIRST)
    assert pruned.masks == reference.masks
    found = logits(pruned.model, token_ids().to(FIRST)).cpu()
    torch.testing.assert_close(found, logits(reference.model, token_ids()), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("scorer", "targets"), [("wpr", "neurons"), *((name, "experts") for name in ("wpr", EXPERT_SCORERS[0]))]
)
def test_mixtures_on_one_device(scorer: str, targets: str) -> None:
    options: dict[str, Any] = {"calibration": token_ids(4), "targets": targets, "repair": make_repair("lstsq")}
    pipelines = [
        ChainedFFNPipeline(model, None, scorer=make_scorer(scorer), **options)
        for model in (tiny_mixture("mixtral").to(FIRST), tiny_mixture("mixtral"))
    ]
    same_outcome(*pipelines)


@pytest.mark.parametrize("place", PLACES)
def test_evaluations_give_the_numbers_of_the_cpu(place: str) -> None:
    model, whole, sequences = PLACES[place](tiny_llama()), tiny_llama(), whole_sequences(token_ids(3))
    assert perplexity(model, sequences).value == pytest.approx(perplexity(whole, sequences).value, rel=1e-5)
    for pair in ((whole, model), (model, whole), (model, model)):
        assert fidelity(*pair, sequences).divergence.value == pytest.approx(0.0, abs=1e-6)
        assert continuations(*pair, sequences, 2, 8, 4).equal_texts.value == 1.0
    words = tokenizer()
    assert complete(model, words, "w4 w5", 4) == complete(whole, words, "w4 w5", 4)
    passages = [Passage(text(9, seed), text(1, seed + 10)) for seed in range(3)]
    assert last_word(model, words, passages) == last_word(whole, words, passages)


# --- meanings of neurons, and changes of losses


@pytest.mark.parametrize("build", [tiny_llama, lambda: tiny_mixture("mixtral")], ids=["dense", "mixture"])
@pytest.mark.parametrize("place", PLACES)
def test_meanings_are_those_of_the_cpu(build: Callable[[], Any], place: str) -> None:
    expected, found = (
        find_meanings(model, tokenizer(), find_ffns(model), whole_sequences(token_ids(3, 12)), 2, Execution(2))
        for model in (build(), PLACES[place](build()))
    )
    for layer, neuron in list(expected)[::7]:
        one, other = expected.of(layer, neuron), found.of(layer, neuron)
        assert [each.context for each in one.contexts] == [each.context for each in other.contexts]
        assert [each.token for each in one.promoted] == [each.token for each in other.promoted]


@pytest.mark.parametrize("place", PLACES)
def test_losses_of_tokens_are_those_of_the_cpu(place: str) -> None:
    sequences = whole_sequences(token_ids(3, 12))
    expected, found = (token_losses(model, sequences) for model in (tiny_llama(), PLACES[place](tiny_llama())))
    assert found.losses == pytest.approx(expected.losses, rel=1e-4)
    assert found.likeliest.tolist() == expected.likeliest.tolist()
