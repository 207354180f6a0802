"""Statistics from sums, compared with a direct computation from captured inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from llmrank.calibration.collect import collect_statistics
from llmrank.calibration.statistics import FFNStatistics, LayerStatistics
from llmrank.errors import CalibrationError, UnsupportedModelError
from llmrank.execution import Execution
from llmrank.models import find_ffns
from llmrank.models.forward import evaluation_mode, longest_input, model_inputs
from llmrank.pipeline import CalibrationText
from llmrank.text import tokenise
from tests.llmrank.plain_pipelines import ChainedFFNPipeline
from tests.llmrank.tiny_models import (
    STRUCTURE,
    Snapshot,
    family_model,
    features,
    mlp,
    named_family,
    text,
    tiny_llama,
    tiny_t5,
    token_ids,
    tokenizer,
    whole_sequences,
)
from tests.tables import table


def captured(model: Any, calls: Callable[[], Any], paths: list[str]) -> dict[str, torch.Tensor]:
    """Return the inputs and outputs (``path:out``) of modules, with all tokens in one (tokens, n) matrix."""
    seen: dict[str, list[torch.Tensor]] = {}

    def hook(path: str) -> Any:
        def keep(_module: Any, inputs: Any, output: torch.Tensor) -> None:
            seen.setdefault(path, []).append(inputs[0].detach().flatten(0, -2).double())
            seen.setdefault(f"{path}:out", []).append(output.detach().flatten(0, -2).double())

        return keep

    handles = [model.get_submodule(path).register_forward_hook(hook(path)) for path in paths]
    with torch.no_grad():
        calls()
    for handle in handles:
        handle.remove()
    return {path: torch.cat(values) for path, values in seen.items()}


def assert_statistics(entry: LayerStatistics, values: torch.Tensor) -> None:
    assert entry.count == len(values)
    torch.testing.assert_close(entry.norm, values.square().sum(0).sqrt(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(entry.mean, values.mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(entry.variance, values.var(0, correction=0), rtol=1e-5, atol=1e-7)
    assert torch.equal(entry.read_norm, entry.norm)


def assert_same(first: tuple[FFNStatistics, ...], second: tuple[FFNStatistics, ...], rtol: float = 1e-6) -> None:
    for a, b in zip(first, second, strict=True):
        for x, y in zip(a.layers, b.layers, strict=True):
            assert x.count == y.count
            for name in ("norm", "mean", "variance"):
                torch.testing.assert_close(
                    getattr(x, name), getattr(y, name), rtol=rtol, atol=1e-6 * float(x.norm.max())
                )


def test_statistics_of_a_gated_ffn() -> None:
    model, ids = tiny_llama(), token_ids(3, 10)
    paths = [f"model.layers.{k}.mlp.{name}" for k in range(2) for name in ("up_proj", "down_proj")]
    seen = captured(model, lambda: model(input_ids=ids), paths)
    for k, entry in enumerate(collect_statistics(model, find_ffns(model), whole_sequences(ids), Execution(2))):
        residual, hidden, output = entry.layers
        assert_statistics(residual, seen[f"model.layers.{k}.mlp.up_proj"])
        # The input of down is the product of gate and up.
        assert_statistics(hidden, seen[f"model.layers.{k}.mlp.down_proj"])
        assert_statistics(output, seen[f"model.layers.{k}.mlp.down_proj:out"])


def test_layers_between_ffns_of_a_chain_have_the_norms_of_the_next_input() -> None:
    model, ids = tiny_llama(), token_ids(3, 10)
    seen = captured(
        model,
        lambda: model(input_ids=ids),
        ["model.layers.0.mlp", "model.layers.1.mlp", "model.layers.1.mlp.down_proj"],
    )
    pipeline = ChainedFFNPipeline(model, None, calibration=ids)
    pipeline.run()
    activations = [torch.from_numpy(a.copy()) for a in pipeline.model_graphs[0].graph.activations]
    assert len(activations) == 5
    for layer, key in ((0, "model.layers.0.mlp"), (2, "model.layers.1.mlp"), (4, "model.layers.1.mlp.down_proj:out")):
        torch.testing.assert_close(activations[layer], seen[key].square().sum(0).sqrt(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["GPT-2", "OPT", "T5", "BERT", "Phi-3"])
def test_the_batch_size_does_not_matter(name: str) -> None:
    model = family_model(named_family(name))
    data = whole_sequences(token_ids(5, 12))
    ffns = find_ffns(model)
    one = collect_statistics(model, ffns, data, Execution(1))
    for batch_size in (2, 5, 100):
        assert_same(one, collect_statistics(model, ffns, data, Execution(batch_size)))


# OPT flattens its tokens in front of the FFN; GPT-2 has learnt positions; BERT attends in both directions.
@pytest.mark.parametrize("name", ["Llama, SmolLM2", "OPT", "GPT-2", "BERT"])
def test_padding_does_not_count(name: str) -> None:
    model, tok = family_model(named_family(name)), tokenizer()
    texts = [text(9, seed=1), text(4, seed=2), text(17, seed=3)]
    ffns = find_ffns(model)
    together = tokenise(texts, tok, 8, 32)
    assert together.ids.shape == (3, 19)
    assert together.mask.sum(1).tolist() == [11, 6, 19]
    padded = collect_statistics(model, ffns, together, Execution(3))
    singles = [
        collect_statistics(model, ffns, whole_sequences(row[mask][None]))
        for row, mask in zip(together.ids, together.mask, strict=True)
    ]
    for k, entry in enumerate(padded):
        for layer, found in enumerate(entry.layers):
            parts = [single[k].layers[layer] for single in singles]
            assert found.count == sum(part.count for part in parts) == 36
            squares = torch.stack([part.norm.square() for part in parts]).sum(0)
            torch.testing.assert_close(found.norm, squares.sqrt(), rtol=1e-5, atol=1e-6)
    assert_same(padded, collect_statistics(model, ffns, together, Execution(1)), rtol=1e-5)


def test_encoder_and_decoder_have_their_own_masks() -> None:
    model = tiny_t5()
    ids = token_ids(3, 10)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[0, 7:] = mask[1, 4:] = False
    inputs, encoder, decoder = model_inputs(model, ids, mask)
    assert encoder is not None
    assert decoder is not None
    assert inputs["input_ids"].shape == inputs["decoder_input_ids"].shape == (3, 5)
    assert encoder.sum(1).tolist() == [5, 4, 5]
    assert decoder.sum(1).tolist() == [2, 0, 5]
    # Teacher forcing: the decoder reads the second half, shifted by its start token.
    assert inputs["decoder_input_ids"][:, 0].tolist() == [0, 0, 0]
    assert torch.equal(inputs["decoder_input_ids"][:, 1:], ids[:, 5:-1])
    entries = collect_statistics(model, find_ffns(model), whole_sequences(ids, mask), Execution(3))
    assert [entry.layers[1].count for entry in entries] == [14, 14, 7, 7]
    full = collect_statistics(model, find_ffns(model), whole_sequences(ids), Execution(3))
    assert [entry.layers[1].count for entry in full] == [15] * 4


def test_features_are_converted_to_the_dtype_of_a_plain_module() -> None:
    model = mlp(4, 6, 5, 2)
    x = features(300, 4)
    seen = captured(model, lambda: model(x), ["0", "2", "4"])
    for data in (x, x.double(), x.numpy().astype("float64")):
        (entry,) = collect_statistics(model, find_ffns(model), tokenise(data, None, 16, 1024))
        for layer, key in enumerate(("0", "2", "4", "4:out")):
            assert_statistics(entry.layers[layer], seen[key])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_are_wide(dtype: torch.dtype) -> None:
    # Large enough that float16 squares overflow, and bfloat16 ones round at 1 %.
    model, x = mlp(4, 6, 2).to(dtype), features(300, 4).to(dtype) * 300
    seen = captured(model, lambda: model(x), ["0", "2"])
    (entry,) = collect_statistics(model, find_ffns(model), tokenise(x, None, 1, 2))
    for layer, key in enumerate(("0", "2", "2:out")):
        wanted = seen[key].square().sum(0).sqrt()
        torch.testing.assert_close(entry.layers[layer].norm, wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("training", [True, False])
def test_modes_hooks_and_gradients_are_not_changed(training: bool) -> None:
    model = tiny_llama(attention_dropout=0.5)
    model.train(training)
    model.model.layers[0].train(not training)
    model.lm_head.weight.requires_grad = False
    modes, grads = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    snapshot = Snapshot(model)
    first = collect_statistics(model, find_ffns(model), whole_sequences(token_ids()))
    assert_same(first, collect_statistics(model, find_ffns(model), whole_sequences(token_ids())), rtol=0)
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == grads
    assert all(p.grad is None for p in model.parameters())
    snapshot.assert_restored()


def test_everything_is_restored_after_an_exception() -> None:
    model = tiny_llama()
    model.train()
    snapshot = Snapshot(model)

    def broken(items: Any, _description: str) -> Any:
        yield items[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect_statistics(model, find_ffns(model), whole_sequences(token_ids()), Execution(progress=broken))
    snapshot.assert_restored()

    def fail() -> None:
        with evaluation_mode(model):
            assert not any(module.training for module in model.modules())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    snapshot.assert_restored()


@table("value", [math.nan, math.inf])
@table("name", ["model.layers.1.mlp.up_proj.weight", "lm_head.weight", "model.norm.weight"])
@table("structure", [None, STRUCTURE])
def test_non_finite_weights_are_named_before_calibration(value: float, name: str, structure: Any) -> None:
    model = tiny_llama(tie_word_embeddings=False)
    with torch.no_grad():
        model.get_parameter(name).view(-1)[3] = value
    pipeline = ChainedFFNPipeline(model, None, structure, calibration=token_ids())
    with pytest.raises(
        UnsupportedModelError, match=rf"^{name} of LlamaForCausalLM holds NaN or Inf in 1 of \d+ places"
    ):
        pipeline.find()


def test_the_error_for_overflowing_activations_names_the_layer() -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3] = 3e38
    pipeline = ChainedFFNPipeline(model, None, calibration=token_ids())
    snapshot = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CalibrationError, match=r"activations of model\.layers\.1\.mlp .*down_proj\).* neuron 3"):
        pipeline.run()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, snapshot[name], rtol=0, atol=0, equal_nan=True)
    assert pipeline.application is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_error_for_an_ffn_that_is_never_called_names_it() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = mlp(4, 6, 4), mlp(4, 6, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    model = Half()
    with pytest.raises(CalibrationError, match="no calibration token passed through unused"):
        collect_statistics(model, find_ffns(model), tokenise(features(10, 4), None, 1, 2))


@pytest.mark.parametrize(("ids", "message"), [([[1, 64]], "run from 1 to 64"), ([[-1, 3]], "run from -1 to 3")])
def test_token_ids_of_another_tokenizer_raise(ids: list[list[int]], message: str) -> None:
    model = tiny_llama()
    snapshot = Snapshot(model)
    with pytest.raises(CalibrationError, match=f"token ids {message}, but LlamaForCausalLM has 64 tokens"):
        ChainedFFNPipeline(model, None, calibration=torch.tensor(ids)).run()
    with pytest.raises(CalibrationError, match="reads token ids"):
        ChainedFFNPipeline(model, None, calibration=torch.rand(2, 3)).run()
    snapshot.assert_restored()


@pytest.mark.parametrize(
    ("name", "options", "longest"),
    [("Llama, SmolLM2", {}, 64), ("GPT-2", {}, 64), ("BLOOM", {}, None), ("RoBERTa", {"max_position_embeddings": 50}, 49),
     ("BERT", {"max_position_embeddings": 50}, 50), ("OPT", {}, 64)],
)  # fmt: skip
def test_sequences_are_at_most_as_long_as_the_model_takes(
    name: str, options: dict[str, int], longest: int | None
) -> None:
    model = family_model(named_family(name), **options)
    assert longest_input(model) == longest
    pipeline = ChainedFFNPipeline(model, tokenizer(), calibration=CalibrationText(text(300), sequence_length=100))
    pipeline.run()
    assert pipeline.report is not None
    assert pipeline.report.calibration["sequence_length"] == (longest or 100)
    if longest is not None:
        with pytest.raises(CalibrationError, match=f"100 tokens long, and .* takes {longest}"):
            ChainedFFNPipeline(family_model(named_family(name), **options), None, calibration=token_ids(2, 100)).run()
