"""Models that are not on one device: offloaded in part, or spread over two, by accelerate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import cpu_offload, disk_offload, dispatch_model
from packaging.version import Version
from torch import nn

import llmrank
from llmrank.errors import OptionError, UnsupportedModelError
from llmrank.evaluation.fidelity import continuations, fidelity
from llmrank.evaluation.last_word import Passage, last_word
from llmrank.evaluation.perplexity import complete, perplexity
from llmrank.models.forward import input_device
from llmrank.pipeline import BasePipeline, CalibrationText
from llmrank.prune import SensitivityPruner
from llmrank.repair import LeastSquaresRepair
from llmrank.score import FLAPScorer, ForwardBackwardScorer, WeightedPageRankScorer
from tests.devices import FIRST, SECOND
from tests.llmrank.devices import on_two
from tests.llmrank.plain_pipelines import ChainedFFNPipeline, IsolatedFFNPipeline, ResidualFFNPipeline
from tests.llmrank.tiny_models import logits, text, tiny_llama, token_ids, tokenizer, whole_sequences

needs_autocast_on_any_device = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.19"),
    reason="transformers before 5.19 switches autocast off on the simulated devices too, for which torch has none",
)
WRITTEN = CalibrationText("generated", samples=2, sequence_length=16)
PIPELINES: dict[str, Callable[..., BasePipeline]] = {
    "isolated": lambda model: IsolatedFFNPipeline(model, None, scorer=FLAPScorer(), calibration=token_ids(4)),
    "chained": lambda model: ChainedFFNPipeline(model, None, scorer=ForwardBackwardScorer(), calibration=token_ids(4)),
    "residual": lambda model: ResidualFFNPipeline(model, None, calibration=token_ids(4)),
    "attention": lambda model: ResidualFFNPipeline(model, None, attention=True, calibration=token_ids(4)),
    "energy": lambda model: ChainedFFNPipeline(
        model, None, scorer=WeightedPageRankScorer(edges="energy"), calibration=token_ids(4)
    ),
    "repaired": lambda model: ChainedFFNPipeline(
        model, None, repair=LeastSquaresRepair(reselect=True), calibration=token_ids(4)
    ),
    "sensitive": lambda model: IsolatedFFNPipeline(model, None, pruner=SensitivityPruner(), calibration=token_ids(4)),
    "evaluated": lambda model: IsolatedFFNPipeline(
        model, None, calibration=token_ids(4), evaluation=token_ids(3, seed=1)
    ),
    "generated": lambda model: ChainedFFNPipeline(model, tokenizer(), calibration=WRITTEN),
}


def dispatched(model: Any, away: tuple[str, ...], directory: Path) -> Any:
    """The model with modules on disk, as ``from_pretrained(device_map=...)`` leaves it."""
    parts = [name for name, module in model.named_modules() if not list(module.children())]
    where = {name: "disk" if name.startswith(away) else "cpu" for name in parts}
    return dispatch_model(model, where, main_device="cpu", offload_dir=directory)


def with_offloaded_embeddings(model: Any, directory: Path) -> Any:
    """The weights are kept on the CPU, but no parameter holds them between passes."""
    cpu_offload(model.model.embed_tokens, torch.device("cpu"))
    disk_offload(model.lm_head, directory, torch.device("cpu"))
    return model


OFFLOADED: dict[str, Callable[[Any, Path], Any]] = {
    "embeddings": lambda model, path: dispatched(model, ("model.embed_tokens",), path),
    "head": lambda model, path: dispatched(model, ("lm_head",), path),
    "both by themselves": with_offloaded_embeddings,
    "all but FFNs": lambda model, path: dispatched(
        model,
        (
            "model.embed_tokens",
            "lm_head",
            "model.norm",
            *(f"model.layers.{k}.{n}" for k in "01" for n in ("self", "in", "post")),
        ),
        path,
    ),
}


def same_outcome(pipeline: BasePipeline, reference: BasePipeline) -> None:
    """Both keep the same neurons, and what is left says the same."""
    model, whole = pipeline.run(), reference.run()
    assert pipeline.masks == reference.masks
    found = logits(model, token_ids().to(input_device(model))).cpu()
    torch.testing.assert_close(found, logits(whole, token_ids()), atol=2e-5, rtol=1e-4)
    assert pipeline.report is not None
    assert reference.report is not None
    evaluations = [report.evaluation for report in (pipeline.report, reference.report)]
    values = [said.after.value for said in evaluations if said is not None and said.after is not None]
    assert values == pytest.approx(values[::-1], rel=1e-4)


# transformers before 5.20 compares the device of the inputs with that of parameters that are not there. Attentions without data
# are refused, see below.
@pytest.mark.filterwarnings("ignore:You are calling .generate:UserWarning")
@pytest.mark.parametrize(
    ("away", "kind"), [(a, k) for a in OFFLOADED for k in PIPELINES if (a, k) != ("all but FFNs", "attention")]
)
def test_offloaded_models_are_pruned_like_whole_ones(away: str, kind: str, tmp_path: Path) -> None:
    model = OFFLOADED[away](tiny_llama(), tmp_path)
    assert any(parameter.is_meta for parameter in model.parameters())
    pipeline = PIPELINES[kind](model)
    same_outcome(pipeline, PIPELINES[kind](tiny_llama()))
    assert pipeline.report is not None
    assert pipeline.report.model["device"] == "cpu"


# What transformers says of it.
@pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules")
def test_an_offloaded_model_is_saved_whole(tmp_path: Path) -> None:
    model = OFFLOADED["all but FFNs"](tiny_llama(), tmp_path / "offloaded")
    pruned = PIPELINES["chained"](model).run()
    loaded = llmrank.load(llmrank.save(tmp_path / "saved", pruned)).model
    torch.testing.assert_close(logits(loaded, token_ids()), logits(pruned, token_ids()))


def only_finding(items: Any, description: str) -> Any:
    """A progress of a pipeline that is to refuse the model before it runs it."""
    assert description == "Finding FFNs", f"{description} came before the model was refused"
    return items


def test_offloaded_attentions_are_refused_before_any_work(tmp_path: Path) -> None:
    model = OFFLOADED["all but FFNs"](tiny_llama(), tmp_path)
    texts = {"calibration": token_ids(4), "evaluation": token_ids(3)}
    with pytest.raises(UnsupportedModelError, match=r"v_proj holds no data here.*leave attention, or heads, out"):
        ResidualFFNPipeline(model, None, attention=True, progress=only_finding, **texts).run()


def test_a_device_for_an_offloaded_model_is_refused_before_any_work(tmp_path: Path) -> None:
    model = OFFLOADED["embeddings"](tiny_llama(), tmp_path)
    with pytest.raises(OptionError, match="leave device out"):
        IsolatedFFNPipeline(model, None, device="cpu", calibration=token_ids(), progress=only_finding).run()


def test_a_model_without_data_and_without_hooks_is_refused() -> None:
    model = tiny_llama()
    model.model.embed_tokens.to("meta")
    with pytest.raises(OptionError, match="load the model with its weights"):
        IsolatedFFNPipeline(model, None, calibration=token_ids()).run()


def test_inputs_go_where_the_first_parameter_is_brought() -> None:
    plain = nn.Sequential(nn.Linear(2, 2))
    assert input_device(plain) == torch.device("cpu")
    # One hook around the module that owns the parameter, among several, as accelerate chains them.
    with torch.device("meta"):
        away = nn.Sequential(nn.Sequential(nn.Linear(2, 2)))
    chain = type("Chain", (), {"hooks": (object(), type("Align", (), {"execution_device": "cuda:1"})())})()
    away[0]._hf_hook = chain
    assert input_device(away) == torch.device("cuda", 1)


@pytest.mark.slow
@needs_autocast_on_any_device
@pytest.mark.usefixtures("two_devices")
@pytest.mark.parametrize("kind", PIPELINES)
def test_models_on_two_devices_are_pruned_like_whole_ones(kind: str) -> None:
    model = on_two(tiny_llama())
    assert {parameter.device for parameter in model.parameters()} == {FIRST, SECOND}
    same_outcome(PIPELINES[kind](model), PIPELINES[kind](tiny_llama()))


@needs_autocast_on_any_device
@pytest.mark.usefixtures("two_devices")
def test_ffns_on_two_devices_are_pruned_like_whole_ones() -> None:
    """The maps that make hidden neurons on one device, the map that reads them on the other."""
    model = tiny_llama()
    where = {name: FIRST for name, module in model.named_modules() if not list(module.children())}
    where |= {name: SECOND for name in where if name.endswith(("gate_proj", "up_proj", "act_fn"))}
    model = dispatch_model(model, where, main_device=FIRST)
    same_outcome(PIPELINES["energy"](model), PIPELINES["energy"](tiny_llama()))


@needs_autocast_on_any_device
@pytest.mark.usefixtures("two_devices")
def test_models_on_two_devices_are_evaluated_like_whole_ones() -> None:
    model, whole, sequences = on_two(tiny_llama()), tiny_llama(), whole_sequences(token_ids(3))
    assert perplexity(model, sequences).value == pytest.approx(perplexity(whole, sequences).value, rel=1e-5)
    assert fidelity(whole, model, sequences).divergence.value == pytest.approx(0.0, abs=1e-6)
    assert continuations(whole, model, sequences, 2, 8, 4).equal_texts.value == 1.0
    words = tokenizer()
    assert complete(model, words, "w4 w5", 4) == complete(whole, words, "w4 w5", 4)
    passages = [Passage(text(9, seed), text(1, seed + 10)) for seed in range(3)]
    assert last_word(model, words, passages) == last_word(whole, words, passages)


@pytest.mark.usefixtures("two_devices")
def test_a_device_for_a_model_on_two_is_refused_before_any_work() -> None:
    with pytest.raises(OptionError, match="leave device out"):
        IsolatedFFNPipeline(
            on_two(tiny_llama()), None, device="cpu", calibration=token_ids(), progress=only_finding
        ).run()
