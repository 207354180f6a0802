"""Tests of the mixtures of experts that are made of a dense model: a tiny Llama takes the place of SmolLM2."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from benchmarks import experts, mixtures
from llmrank.models import find_ffns
from llmrank.surgery import checkpoint
from llmrank.text import TokenSequences
from tests.llmrank.tiny_models import FFN, LLAMA, VOCABULARY

SHAPE = mixtures.Shape(n_experts=5, top_k=3)


@pytest.fixture
def dense() -> Any:
    torch.manual_seed(0)
    model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).eval()
    # Trained models have a direction that is nearly the same for all tokens.
    model.model.embed_tokens.weight.data[:, 0] += 1.0
    return model


@pytest.fixture
def text() -> TokenSequences:
    ids = torch.randint(3, VOCABULARY, (8, 32), generator=torch.Generator().manual_seed(0))
    return TokenSequences.of(ids, torch.ones_like(ids, dtype=torch.bool), "random")


@torch.no_grad()
def logits(model: Any, text: TokenSequences) -> torch.Tensor:
    found: torch.Tensor = model(text.ids).logits
    return found


def test_the_control_computes_what_the_dense_model_computes(dense: Any, text: TokenSequences) -> None:
    model = mixtures.mixtral(dense, mixtures.control(dense, 5), 5)
    torch.testing.assert_close(logits(model, text), logits(dense, text), atol=1e-5, rtol=0)


@pytest.mark.parametrize("refit", [False, True])
def test_experts_partition_the_neurons(dense: Any, text: TokenSequences, refit: bool) -> None:
    parts = mixtures.split(dense, text, SHAPE, refit=refit)
    for part, layer in zip(parts, dense.model.layers, strict=True):
        assert part.neurons.shape == (5, FFN // 5)
        assert sorted(part.neurons.flatten().tolist()) == list(range(FFN))
        down = layer.mlp.down_proj.weight[:, part.neurons].permute(1, 0, 2)
        assert torch.equal(part.down, down) is not refit


def test_a_split_with_all_experts_is_nearly_the_dense_model(dense: Any, text: TokenSequences) -> None:
    parts = mixtures.split(dense, text, mixtures.Shape(5, 5, sharpness=1e-6), refit=False)
    torch.testing.assert_close(logits(mixtures.mixtral(dense, parts, 5), text), logits(dense, text), atol=1e-5, rtol=0)


def test_fitted_down_projections_bring_the_mixture_closer(dense: Any, text: TokenSequences) -> None:
    distances = []
    for refit in (False, True):
        model = mixtures.mixtral(dense, mixtures.split(dense, text, SHAPE, refit=refit), SHAPE.top_k)
        distances.append(float((logits(model, text) - logits(dense, text)).norm()))
    assert distances[1] < 0.7 * distances[0]


def test_stock_transformers_loads_the_checkpoint(dense: Any, text: TokenSequences, tmp_path: Path) -> None:
    model = mixtures.mixtral(dense, mixtures.split(dense, text, SHAPE), SHAPE.top_k)
    checkpoint.save(tmp_path / "mixture", model)
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "mixture", output_loading_info=True)
    assert type(loaded) is transformers.MixtralForCausalLM
    assert not any(info.values())
    torch.testing.assert_close(logits(loaded, text), logits(model, text))


def test_clusters_hold_what_varies_together() -> None:
    common = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(100, 12, generator=torch.Generator().manual_seed(1))
    values = common.repeat(1, 3) + 0.1 * noise
    values -= values.mean(0)
    found = mixtures._clusters(values.T @ values, 4)
    assert sorted(found.tolist()) == [[k, k + 4, k + 8] for k in range(4)]


def test_every_score_removes_the_unused_experts_first(dense: Any, text: TokenSequences) -> None:
    found = experts.known_answers(dense, text, SHAPE.n_experts)
    assert found.pop("distance from dense") < 1e-5
    for score, entry in found.items():
        if score != "random":
            assert entry["unused"] == 1.0, score
            assert entry["change"] < 1e-5, score


def test_rows_name_scores_of_whole_experts_only_where_experts_are_removed() -> None:
    rows = list(experts.rows([0.25], ["none"]))
    assert len({row.key for row in rows}) == len(rows)
    assert {row.score for row in rows if row.target == "experts"} == set(experts.SCORES)
    assert not {row.score for row in rows if row.target == "neurons"} & set(experts.WHOLE)


def test_a_study_measures_rows_and_restores_the_mixture(dense: Any, text: TokenSequences) -> None:
    model = mixtures.mixtral(dense, mixtures.split(dense, text, SHAPE), SHAPE.top_k)
    study = experts.Study(model, (text, text), {"test": text, "valid": text})
    before = logits(model, text)
    results = {
        "variants": {
            "dense": {"test": 1.0, "valid": 1.0},
            "mixture": study.losses(),
            "control": {"distance": 0.0, "largest logit": 1.0},
        }
    }
    wanted = [experts.Row("experts", 0.4, repair, score) for repair in ("none", "lstsq") for score in ("wpr", "reap")]
    experts.fill(study, results, wanted, lambda: None)
    torch.testing.assert_close(logits(model, text), before)
    assert results["rows"].keys() == {row.key for row in wanted}
    assert find_ffns(model).mixtures[0].n_experts == SHAPE.n_experts
    assert "| experts | reap | lstsq |" in experts.table(results)
