"""The explicit form: Linears named by a `structure_dict`, whose rows are pruned, as in the paper."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from llmrank.errors import MaskError, OptionError, StructureError, UnsupportedModelError
from llmrank.pipeline import BasePipeline
from llmrank.prune import GlobalPruner, LocalPruner
from llmrank.prune.masks import Masks
from llmrank.score import NormScorer, WeightedPageRankScorer
from llmrank.surgery.apply import apply_masks
from tests.llmrank.plain_pipelines import ChainedFFNPipeline, IsolatedFFNPipeline
from tests.llmrank.tiny_models import STRUCTURE, Snapshot, logits, tiny_llama, token_ids
from tests.tables import table

NAMES = [f"model.layers.{k}.mlp.{name}" for k in range(2) for name in ("up_proj", "down_proj")]
topologies = pytest.mark.parametrize("topology", [ChainedFFNPipeline, IsolatedFFNPipeline])


@topologies
def test_the_call_from_the_paper_zeroes_rows(topology: type[BasePipeline]) -> None:
    model = tiny_llama()
    before = Snapshot(model)
    pipeline = topology(
        model, None, STRUCTURE, WeightedPageRankScorer(), LocalPruner(amount=0.3), "cpu", calibration=token_ids()
    )
    assert pipeline.run() is model
    assert pipeline.masks is not None
    assert list(pipeline.masks) == NAMES
    for name in NAMES:
        weight, old = model.get_submodule(name).weight, before.bits[f"{name}.weight"]
        zero = (weight == 0).all(1)
        assert int(zero.sum()) == round(0.3 * len(weight))
        assert torch.equal(~zero, pipeline.masks[name])
        assert torch.equal(weight[~zero], old[~zero])
    untouched = [n for n, p in model.named_parameters() if n.removesuffix(".weight") not in NAMES]
    assert all(torch.equal(model.get_parameter(name), before.bits[name]) for name in untouched)
    pipeline.undo()
    before.assert_restored()


def test_the_six_arguments_can_be_keywords() -> None:
    pipeline = ChainedFFNPipeline(
        model=tiny_llama(),
        tokenizer=None,
        structure_dict=STRUCTURE,
        scorer=NormScorer(),
        pruner=LocalPruner(3),
        device="cpu",
        calibration=token_ids(),
    )
    pipeline.run()
    assert pipeline.masks is not None
    assert [len(pipeline.masks.removed(name)) for name in NAMES] == [3] * 4


@topologies
def test_the_graph_has_one_layer_for_each_linear(topology: type[BasePipeline]) -> None:
    model = tiny_llama()
    weights = [model.get_submodule(name).weight.detach().abs().double() for name in NAMES]
    pipeline = topology(model, None, STRUCTURE, calibration=token_ids())
    pipeline.run()
    graphs = [entry.graph for entry in pipeline.model_graphs]
    assert [graph.layer_sizes for graph in graphs] == (
        [(16, 40, 16, 40, 16)] if topology is ChainedFFNPipeline else [(16, 40, 16)] * 2
    )
    blocks = [graph.block(k).toarray() for graph in graphs for k in range(1, len(graph.layer_sizes))]
    for block, weight in zip(blocks, weights, strict=True):
        torch.testing.assert_close(torch.from_numpy(block).double(), weight)


def test_activation_is_the_norm_of_the_linears_own_output() -> None:
    model, ids = tiny_llama(), token_ids()
    seen: dict[str, torch.Tensor] = {}
    for name in NAMES:
        model.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: seen.__setitem__(name, output.detach().flatten(0, 1))
        )
    logits(model, ids)
    outputs = dict(seen)
    pipeline = ChainedFFNPipeline(model, None, STRUCTURE, calibration=ids)
    pipeline.run()
    (entry,) = pipeline.model_graphs
    for name, activation in zip(NAMES, entry.graph.activations[1:], strict=True):
        wanted = outputs[name].double().square().sum(0).sqrt()
        torch.testing.assert_close(torch.from_numpy(activation.copy()), wanted, rtol=1e-6, atol=0)


def test_the_mask_form_is_that_of_torch_prune() -> None:
    model = tiny_llama()
    zeroed = tiny_llama()
    before, ids = Snapshot(model), token_ids()
    pipeline = ChainedFFNPipeline(model, None, STRUCTURE, calibration=ids, form="mask")
    pipeline.run()
    ChainedFFNPipeline(zeroed, None, STRUCTURE, calibration=ids, form="zero").run()
    torch.testing.assert_close(logits(model, ids), logits(zeroed, ids), rtol=0, atol=0)
    assert pipeline.masks is not None
    for name in NAMES:
        module = model.get_submodule(name)
        assert torch_prune.is_pruned(module)
        assert torch.equal(module.weight_orig, before.bits[f"{name}.weight"])
        wanted = pipeline.masks[name][:, None].expand_as(module.weight_orig)
        assert torch.equal(module.weight_mask.bool(), wanted)
        torch_prune.remove(module, "weight")
        assert torch.equal(module.weight, zeroed.get_submodule(name).weight)


def test_biases_of_pruned_rows_are_removed() -> None:
    model = tiny_llama(mlp_bias=True)
    old = {name: model.get_submodule(name).bias.detach().clone() for name in NAMES}
    pipeline = ChainedFFNPipeline(model, None, STRUCTURE, calibration=token_ids())
    pipeline.run()
    assert pipeline.masks is not None
    for name in NAMES:
        keep = pipeline.masks[name]
        assert torch.equal(model.get_submodule(name).bias, torch.where(keep, old[name], torch.zeros(())))


def test_compact_raises_before_anything_is_changed() -> None:
    model = tiny_llama()
    with pytest.raises(OptionError, match="compact"):
        ChainedFFNPipeline(model, None, STRUCTURE, calibration=token_ids(), form="compact")
    pipeline = ChainedFFNPipeline(model, None, STRUCTURE, calibration=token_ids())
    snapshot, ffns = Snapshot(model), pipeline.find().ffns
    masks = Masks.full({name: 40 if "up" in name else 16 for name in NAMES})
    with pytest.raises(OptionError, match="compact"):
        apply_masks(model, ffns, masks, "compact")
    with pytest.raises(MaskError, match="do not fit this model"):
        apply_masks(model, ffns, Masks.full({"model.layers.0.mlp": 40}), "zero")
    snapshot.assert_restored()


def test_global_defaults_to_raw_scores_and_isolated_to_one_ffn_at_a_time() -> None:
    chained = ChainedFFNPipeline(tiny_llama(), None, STRUCTURE, pruner=GlobalPruner(0.3), calibration=token_ids())
    chained.run()
    assert chained.masks is not None
    scores = torch.cat([chained.model_graphs[0].importance(chained.ranks[0])[name] for name in NAMES])
    keep = torch.cat([chained.masks[name] for name in NAMES])
    assert int((~keep).sum()) == -(-3 * 112 // 10)
    assert scores[~keep].max() <= scores[keep].min()
    isolated = IsolatedFFNPipeline(tiny_llama(), None, STRUCTURE, pruner=GlobalPruner(0.3), calibration=token_ids())
    isolated.run()
    assert isolated.masks is not None
    for pair in (NAMES[:2], NAMES[2:]):
        assert sum(len(isolated.masks.removed(name)) for name in pair) == -(-3 * 56 // 10)


def test_dotted_paths_and_up_alone() -> None:
    structure = {"path_to_layers": "model.layers", "path_to_modules": ["mlp.up_proj"]}
    pipeline = IsolatedFFNPipeline(tiny_llama(), None, structure, calibration=token_ids())
    pipeline.run()
    assert pipeline.masks is not None
    assert list(pipeline.masks) == NAMES[::2]
    # up_proj ends in 40 nodes and the next one starts with 16, so they do not chain.
    with pytest.raises(StructureError, match="do not chain; use IsolatedFFNPipeline"):
        ChainedFFNPipeline(tiny_llama(), None, structure, calibration=token_ids()).run()


def changed(**entries: Any) -> dict[str, Any]:
    return {**STRUCTURE, **entries}


@table(
    ("structure", "message"),
    [
        ({"path_to_layers": ["model", "layers"]}, "must be a mapping like"),
        (["model", "layers"], "must be a mapping like"),
        (changed(path_to_layers=["model", "blocks"]), "model has no module 'blocks'; it has: embed_tokens, layers,"),
        (changed(path_to_layers=["transformer", "h"]), "LlamaForCausalLM has no module 'transformer'; it has: model,"),
        (changed(path_to_layers=["model"]), "leads to a LlamaModel; expected a ModuleList"),
        (changed(path_to_layers=[]), "path_to_layers holds an empty path"),
        (changed(path_to_layers=5), "path_to_layers holds 5; expected attribute names"),
        (changed(path_to_modules=5), "path_to_modules is 5; expected a list of paths"),
        (changed(path_to_modules=()), "path_to_modules lists no module"),
        (changed(path_to_modules="mlp.up_proj"), "path_to_modules is 'mlp.up_proj'; expected a list of paths"),
        (changed(path_to_modules=iter([("mlp", "up_proj")])), "path_to_modules is <list_iterator"),
        (changed(path_to_modules=[iter(("mlp", "up_proj"))]), "path_to_modules holds <tuple_iterator"),
        (changed(path_to_layers=iter(("model", "layers"))), "path_to_layers holds <tuple_iterator"),
        (changed(path_to_modules=((),)), "path_to_modules holds an empty path"),
        (
            changed(path_to_modules=(("mlp", "fc1"),)),
            "model.layers.0.mlp has no module 'fc1'; it has: gate_proj, up_proj, down_proj",
        ),
        (
            changed(path_to_modules=(("mlp", "up_proj", "inner"),)),
            "model.layers.0.mlp.up_proj has no module 'inner'; it has: no modules",
        ),
        (changed(path_to_modules=(("mlp", "act_fn"),)), "model.layers.0.mlp.act_fn is a SiLU"),
        (changed(path_to_modules=(("mlp",),)), "model.layers.0.mlp is a LlamaMLP; expected a Linear"),
        (
            changed(path_to_modules=(("mlp", "up_proj"), ("mlp", "gate_proj"))),
            "model.layers.0.mlp.up_proj returns 40 outputs but model.layers.0.mlp.gate_proj reads 16",
        ),
    ],
)
def test_errors_for_wrong_paths_list_the_existing_modules(structure: Any, message: str) -> None:
    model = tiny_llama()
    snapshot = Snapshot(model)
    with pytest.raises(StructureError, match=re.escape(message)):
        ChainedFFNPipeline(model, None, structure, calibration=token_ids()).run()
    snapshot.assert_restored()


def test_the_same_linear_twice_raises() -> None:
    structure = changed(path_to_modules=(("self_attn", "q_proj"), ("self_attn", "q_proj")))
    with pytest.raises(StructureError, match="twice"):
        ChainedFFNPipeline(tiny_llama(), None, structure, calibration=token_ids()).run()


def test_quantised_linears_raise() -> None:
    model = tiny_llama()
    linear = nn.Linear(16, 40, bias=False)
    linear.weight = nn.Parameter(torch.zeros(40, 16, dtype=torch.int8), requires_grad=False)
    model.model.layers[1].mlp.up_proj = linear
    with pytest.raises(UnsupportedModelError, match=r"^model\.layers\.1\.mlp\.up_proj .* quantised"):
        ChainedFFNPipeline(model, None, STRUCTURE, calibration=token_ids()).run()
