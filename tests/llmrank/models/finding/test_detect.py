"""Models whose FFNs are found, and models that raise an error with an explanation."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from llmrank.errors import CalibrationError, UnsupportedModelError
from llmrank.models import explicit_ffns, find_ffns
from llmrank.models.families import bias_attribute
from llmrank.models.finding.attention import find_attentions
from llmrank.pipeline import BasePipeline
from llmrank.prune import GlobalPruner, LocalPruner
from tests.llmrank.plain_pipelines import ChainedFFNPipeline, IsolatedFFNPipeline
from tests.llmrank.tiny_models import LLAMA, STRUCTURE, Snapshot, features, mlp, tiny_llama, tiny_t5, token_ids
from tests.tables import table


class Separate(nn.Module):
    """down(act(up x)), with a module of the test's choice in between."""

    def __init__(self, between: nn.Module | None = None, d: int = 6, f: int = 10) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(d, f), nn.Linear(f, d)
        self.between = between if between is not None else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.between(torch.relu(self.up(x))))


class Fused(nn.Module):
    """One map for gate and up, in halves or interleaved."""

    def __init__(self, *, interleaved: bool) -> None:
        super().__init__()
        self.gate_up, self.down = nn.Linear(6, 20), nn.Linear(10, 6)
        self.interleaved = interleaved

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.gate_up(x)
        gate, up = (y[..., ::2], y[..., 1::2]) if self.interleaved else y.chunk(2, dim=-1)
        return self.down(torch.sigmoid(gate) * up)


class Packed(nn.Module):
    """A linear map as GPTQ and AWQ store it: no weight, integers in qweight."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.in_features, self.out_features = n_in, n_out
        self.register_buffer("qweight", torch.zeros(n_in // 2, n_out, dtype=torch.int32))


class LinearInt8(nn.Linear):
    """A Linear whose weight is an int8 buffer, while its bias is float."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out)
        del self.weight
        self.register_buffer("weight", torch.zeros(n_out, n_in, dtype=torch.int8))


class Wrapped(torch.Tensor):
    """A tensor subclass that claims to be float32, like those of quantisers and sharding."""


@pytest.mark.parametrize("sizes", [(6, 12, 4), (6, 12, 10, 4), (6, 12, 10, 9, 8, 7, 4)], ids=["2", "3", "6"])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid])
@pytest.mark.parametrize("topology", [ChainedFFNPipeline, IsolatedFFNPipeline])
def test_sequential_forms_compute_the_same(
    sizes: tuple[int, ...], activation: Callable[[], nn.Module], topology: type[BasePipeline]
) -> None:
    model = mlp(*sizes, activation=activation).eval()
    x, snapshot = features(50, sizes[0], seed=3), Snapshot(model)
    dense = model(x)
    outputs = {}
    for form in ("zero", "mask", "compact"):
        run = topology(model, None, pruner=LocalPruner(0.3), calibration=features(100, sizes[0]), form=form)
        run.run()
        outputs[form] = model(x).detach()
        assert run.masks is not None
        assert set(run.masks) == {str(2 * k) for k in range(len(sizes) - 2)}
        if form == "compact":
            widths = [layer.out_features for layer in model if isinstance(layer, nn.Linear)]
            assert widths == [*(n - round(0.3 * n) for n in sizes[1:-1]), sizes[-1]]
        run.undo()
        snapshot.assert_restored()
    torch.testing.assert_close(outputs["zero"], outputs["mask"], rtol=0, atol=0)
    # sigmoid(0) = 0.5, so the result is exact only if the columns of the next map are removed too.
    torch.testing.assert_close(outputs["compact"], outputs["zero"], rtol=1e-5, atol=1e-6)
    assert (outputs["zero"] - dense).abs().max() > 1e-4


def test_removing_everything_but_one_neuron_keeps_just_its_path() -> None:
    model = mlp(3, 5, 2, activation=nn.Sigmoid)
    first, last = model[0], model[2]
    run = ChainedFFNPipeline(model, None, pruner=LocalPruner(4), calibration=features(20, 3))
    weight, bias, out, offset = (p.detach().clone() for p in (first.weight, first.bias, last.weight, last.bias))
    run.run()
    assert run.masks is not None
    (j,) = run.masks["0"].nonzero().flatten().tolist()
    x = features(4, 3, seed=9)
    by_hand = torch.sigmoid(x @ weight[j] + bias[j])[:, None] * out[:, j] + offset
    torch.testing.assert_close(model(x), by_hand)


@table(
    "between", [nn.LayerNorm(10), nn.BatchNorm1d(10), nn.Softmax(dim=-1), nn.LayerNorm(10, elementwise_affine=False)]
)
def test_sequential_that_couples_neurons_raises(between: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(6, 10), between, nn.ReLU(), nn.Linear(10, 6))
    with pytest.raises(UnsupportedModelError, match="no feed-forward network") as caught:
        find_ffns(model)
    assert "1 x * 6 -> 10" in str(caught.value)
    assert "1 x * 10 -> 6" in str(caught.value)


@pytest.mark.parametrize("between", [nn.LayerNorm(10), nn.Softmax(dim=-1), nn.LayerNorm(10, elementwise_affine=False)])
def test_mlp_that_couples_neurons_raises(between: nn.Module) -> None:
    with pytest.raises(UnsupportedModelError, match=r"not separate|no feed-forward network"):
        find_ffns(Separate(between))


def test_an_interruption_before_the_trial_leaves_no_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    snapshot = Snapshot(model)

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn", interrupted)
        with pytest.raises(KeyboardInterrupt):
            find_ffns(model)
    snapshot.assert_restored()


def test_mlp_with_a_norm_on_as_many_hidden_neurons_as_inputs_raises() -> None:
    # By its shape alone, this norm could be one of the residual stream.
    with pytest.raises(UnsupportedModelError, match="not separate"):
        find_ffns(Separate(nn.LayerNorm(6), d=6, f=6))


class Scaled(Separate):
    """A scale of every neuron, as in Dory: nothing couples the neurons, but they have a parameter beside the maps."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(10))


@pytest.mark.parametrize(
    ("make", "name"), [(lambda: Separate(nn.LayerNorm(10)), "between.weight"), (Scaled, "scale")], ids=["norm", "scale"]
)
def test_the_error_names_the_parameter_that_acts_on_the_neurons(make: Callable[[], nn.Module], name: str) -> None:
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"mlp": make()}) for _ in range(2)])})
    message = rf"layers\.0\.mlp .* plain FFN, but .* not separate: layers\.0\.mlp\.{name} is another parameter"
    with pytest.raises(UnsupportedModelError, match=message):
        find_ffns(model)


def test_ffns_of_one_class_that_differ_by_a_setting_are_checked_one_by_one() -> None:
    class Largest(nn.Module):
        """Keeps the largest neurons of every token, as some FFNs of Gemma 3n do."""

        def __init__(self, share: float) -> None:
            super().__init__()
            self.share = share
            self.up, self.down = nn.Linear(6, 10), nn.Linear(10, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.up(x)
            return self.down(torch.relu(x - (x.std(-1, keepdim=True) if self.share else 0)))

    assert len(find_ffns(nn.Sequential(Largest(0.0), Largest(0.0)))) == 2
    with pytest.raises(UnsupportedModelError, match=r"^1 \(Largest\) .* hidden neurons 1 and \d+ are not separate"):
        find_ffns(nn.Sequential(Largest(0.0), Largest(0.5)))


def test_separable_mlp_is_found() -> None:
    (ffn,) = find_ffns(Separate(nn.Tanh()))
    assert (ffn.kind, ffn.sizes) == ("plain", (6, 10, 6))


def test_mlp_with_a_linear_map_between_has_one_more_stage() -> None:
    (ffn,) = find_ffns(Separate(nn.Linear(10, 10)))
    assert (ffn.kind, ffn.sizes, list(ffn.prunable)) == ("sequential", (6, 10, 10, 6), [1, 2])


def test_interleaved_gate_and_up_raise() -> None:
    (ffn,) = find_ffns(Fused(interleaved=False))
    assert (ffn.kind, ffn.sizes) == ("fused", (6, 10, 6))
    with pytest.raises(UnsupportedModelError, match="interleaved layout"):
        find_ffns(Fused(interleaved=True))


def test_finding_changes_no_modes_hooks_or_random_state() -> None:
    model = nn.ModuleList([Separate(nn.Dropout(0.5)), Separate(nn.Dropout(0.5))])
    model.train()
    model[0].between.eval()
    modes, state = [m.training for m in model.modules()], torch.get_rng_state()
    snapshot = Snapshot(model)
    find_ffns(model)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    snapshot.assert_restored()


class OwnAttention(nn.Module):
    """An attention with queries, keys and values of d -> d: by their shapes alone, they would be a gated FFN."""

    def __init__(self, d: int = 6, *, output: bool = True) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(d, d) for _ in range(3))
        if output:
            self.o_proj = nn.Linear(d, d)


class AttentionDecoderLayer(nn.Module):
    """A block whose class name contains "Attention", like Jamba's and Mllama's blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.feed_forward = OwnAttention(), Separate()


class AttentionFreeBlock(nn.Module):
    """A block without attention but with the word in its name; it holds the maps of its FFN itself."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 10), nn.Linear(10, 6)


class BlockWithQueries(OwnAttention):
    """A block that holds the maps of its attention directly."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = Separate()


class OutputOutside(nn.Module):
    """The attention's output map lies outside the module of the other maps, and the FFN's output map in the block, as in BERT."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": OwnAttention(output=False), "output": nn.Linear(6, 6)})
        self.intermediate, self.output = nn.Linear(6, 10), nn.Linear(10, 6)


class SharedValues(nn.Module):
    """Only a query and an output map, because keys and values come from another block: d -> h, h -> d, like a plain FFN."""

    def __init__(self) -> None:
        super().__init__()
        self.attend, self.mlp = nn.Module(), Separate()
        self.attend.q_proj, self.attend.o_proj = nn.Linear(6, 10), nn.Linear(10, 6)


class Recurrent(nn.Module):
    """Gated maps of d -> d with a convolution over tokens between them."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.mlp = nn.Module(), Separate()
        self.mix.y, self.mix.x, self.mix.out = (nn.Linear(6, 6) for _ in range(3))
        self.mix.convolution = nn.Conv1d(6, 6, 4, groups=6)


class Adapted(nn.Module):
    """An FFN with an adapter behind it."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.mlp, self.adapter = Separate(), Separate(f=width)


@table(
    ("block", "found"),
    [
        (AttentionDecoderLayer, "feed_forward"),
        (AttentionFreeBlock, ""),
        (BlockWithQueries, "mlp"),
        (OutputOutside, ""),
        (SharedValues, "mlp"),
        (Recurrent, "mlp"),
        (Adapted, "mlp"),
    ],
)
def test_attentions_and_bottlenecks_are_recognised_by_their_maps(block: type[nn.Module], found: str) -> None:
    model = nn.ModuleDict({"layers": nn.ModuleList(block() for _ in range(2))})
    names = [f"layers.{k}.{found}".rstrip(".") for k in range(2)]
    assert [(ffn.name, ffn.sizes) for ffn in find_ffns(model)] == [(name, (6, 10, 6)) for name in names]


def test_an_adapter_as_wide_as_the_stream_is_an_ffn() -> None:
    model = nn.ModuleDict({"layers": nn.ModuleList([Adapted(width=6)])})
    assert [ffn.name for ffn in find_ffns(model)] == ["layers.0.mlp", "layers.0.adapter"]


class LowRank(nn.Module):
    """Two maps with nothing between them, wider than the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)
        self.norm = nn.LayerNorm(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.norm(self.down(self.up(x)))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_linear_term_beside_an_ffn_is_none_however_wide(device: str) -> None:
    with torch.device(device):
        block = nn.ModuleDict({"term": LowRank(), "mlp": Separate()})
        model = nn.ModuleDict({"layers": nn.ModuleList([block])})
        assert [ffn.name for ffn in find_ffns(model)] == ["layers.0.mlp"]
    # Alone in its block, it is what can be pruned.
    assert len(find_ffns(nn.ModuleDict({"layers": nn.ModuleList([LowRank()])}))) == 1


class Lora(nn.Module):
    """A linear map inside an adapter's module, as in peft."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer, self.weight = base, base.weight

    def merge(self) -> None:
        raise NotImplementedError


def test_the_error_for_peft_adapters_says_how_to_merge_them() -> None:
    message = r"^down of Separate is wrapped by adapters \(Lora around a Linear.*merge_and_unload\(\)"
    with pytest.raises(UnsupportedModelError, match=message):
        find_ffns(with_down(Lora(nn.Linear(10, 6))))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_model_wrapped_by_peft_raises() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny_llama(), peft.LoraConfig(target_modules=["up_proj", "q_proj"], r=2))
    with pytest.raises(UnsupportedModelError, match=r"merge_and_unload\(\)"):
        find_ffns(model)
    assert len(find_ffns(model.merge_and_unload())) == 2


def test_compiled_models_raise_with_the_module_name() -> None:
    inside, in_place = tiny_llama(), tiny_llama()
    inside.model.layers[0].mlp = torch.compile(inside.model.layers[0].mlp, backend="eager")
    in_place.model.layers[1].mlp.compile(backend="eager")
    for model, name in (
        (inside, r"model\.layers\.0\.mlp of LlamaForCausalLM"),
        (in_place, r"model\.layers\.1\.mlp of LlamaForCausalLM"),
        (torch.compile(tiny_llama(), backend="eager"), "OptimizedModule"),
    ):
        with pytest.raises(UnsupportedModelError, match=rf"^{name} is compiled \(torch\.compile\)"):
            find_ffns(model)
        with pytest.raises(UnsupportedModelError, match=r"is compiled"):
            explicit_ffns(model, STRUCTURE)


def test_models_on_the_meta_device_may_hold_any_values() -> None:
    with torch.device("meta"):
        model = mlp(4, 8, 4)
    model.register_parameter("left", nn.Parameter(torch.full((2,), float("nan"))))
    assert len(find_ffns(model)) == 1


VISION = {"hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
PIXELS = {"image_size": 16, "patch_size": 8}


def clip() -> Any:
    text = {key: LLAMA[key] for key in ("vocab_size", "max_position_embeddings", "pad_token_id", "eos_token_id")}
    config = transformers.CLIPConfig(text_config=text | VISION, vision_config=VISION | PIXELS, projection_dim=16)
    return transformers.CLIPModel(config)


@pytest.mark.parametrize(
    ("make", "reads"),
    [
        (lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**VISION, **PIXELS)), "pixel_values"),
        (lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**VISION, **PIXELS)), "pixel_values"),
        (lambda: clip().vision_model, "pixel_values"),
        (clip, "more than token ids"),
    ],
    ids=["ViT", "SigLIP tower", "CLIP tower", "CLIP"],
)
@table("calibration", [token_ids(2, 8), torch.zeros(2, 3, 16, 16)])
def test_the_error_for_image_models_says_what_is_expected(
    make: Callable[[], Any], reads: str, calibration: torch.Tensor
) -> None:
    model = make()
    snapshot = Snapshot(model)
    with pytest.raises(
        CalibrationError, match=rf"reads {reads}, and llmrank passes token ids alone; expected a language"
    ):
        IsolatedFFNPipeline(model, None, calibration=calibration).run()
    snapshot.assert_restored()


def test_the_attentions_of_a_model_without_token_embeddings_are_not_found() -> None:
    model = clip()
    with pytest.raises(UnsupportedModelError, match="CLIPModel is not a transformers model that reads token ids"):
        find_attentions(model, find_ffns(model))


def test_an_image_model_wrapped_in_a_plain_module_takes_images() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = transformers.ViTForImageClassification(transformers.ViTConfig(**VISION, **PIXELS))

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.inner(pixel_values=pixels).logits
            return logits

    run = IsolatedFFNPipeline(Wrapped(), None, calibration=torch.randn(4, 3, 16, 16), pruner=LocalPruner(0.3))
    run.run()
    assert run.masks is not None
    assert set(run.masks.widths.values()) == {28}


def test_a_model_that_needs_more_than_ids_raises() -> None:
    class Picky(transformers.LlamaForCausalLM):
        def forward(self, input_ids: torch.Tensor, boxes: torch.Tensor, **more: Any) -> Any:
            return super().forward(input_ids + boxes, **more)

    class Body(transformers.LlamaModel):
        def forward(self, input_ids: torch.Tensor, boxes: torch.Tensor, **more: Any) -> Any:
            return super().forward(input_ids + boxes, **more)

    model = Picky(tiny_llama().config)
    model.model = Body(model.config)
    with pytest.raises(CalibrationError, match=r"Picky does not run on the inputs of calibration, input_ids, .*boxes"):
        IsolatedFFNPipeline(model, None, calibration=token_ids(2, 8)).run()


def with_down(down: nn.Module) -> nn.Module:
    model = Separate()
    model.down = down
    return model


def wrapped_weight() -> nn.Module:
    linear = nn.Linear(10, 6)
    linear.weight = nn.Parameter(torch.zeros(6, 10).as_subclass(Wrapped), requires_grad=False)
    assert type(linear.weight) is Wrapped
    return linear


def float8_weight() -> nn.Module:
    linear = nn.Linear(10, 6)
    linear.weight = nn.Parameter(linear.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    return linear


@table(
    "make", [lambda: LinearInt8(10, 6), lambda: Packed(10, 6), wrapped_weight, float8_weight],
)  # fmt: skip
def test_quantised_weights_raise_with_the_module_name(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(UnsupportedModelError, match=r"^down of Separate holds quantised or wrapped weights"):
        find_ffns(with_down(make()))


@table("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floating_dtypes_are_accepted(dtype: torch.dtype) -> None:
    assert len(find_ffns(mlp(4, 8, 2).to(dtype))) == 1


def test_weights_tied_between_ffns_raise() -> None:
    model = nn.ModuleList([Separate(), Separate()])
    model[1].up.weight = model[0].up.weight
    with pytest.raises(UnsupportedModelError, match=r"0\.up and 1\.up share one parameter"):
        find_ffns(model)


def test_the_error_for_weights_that_a_class_ties_on_loading_does_not_advise_to_untie_them() -> None:
    model: Any = nn.ModuleList([Separate(), Separate()])
    model[1].up.weight = model[0].up.weight
    model.all_tied_weights_keys = {"1.up.weight": "0.up.weight"}  # of classes of transformers, such as Zamba's
    with pytest.raises(
        UnsupportedModelError, match=r"0\.up and 1\.up share .* ModuleList ties them whenever it is loaded"
    ):
        find_ffns(model)


def test_a_weight_tied_to_a_module_outside_the_ffns_raises() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.mlp = nn.Embedding(10, 6), Separate()
            self.mlp.up.weight = self.embedding.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.mlp(self.embedding(x))

    with pytest.raises(UnsupportedModelError, match=r"embedding and mlp\.up share one parameter"):
        find_ffns(Tied())


def test_weights_tied_outside_the_ffns_are_accepted() -> None:
    model = tiny_llama(tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert len(find_ffns(model)) == 2


def test_shared_module_is_visited_once() -> None:
    block = Separate()
    twice = nn.Sequential(block, nn.Identity(), block)
    (ffn,) = find_ffns(twice)
    assert ffn.name == "0"
    x, snapshot = features(5, 6), Snapshot(twice)
    run = ChainedFFNPipeline(twice, None, calibration=features(30, 6), pruner=LocalPruner(0.5), form="zero")
    zeroed = run.run()(x).detach()
    # Both uses count: its inputs are the features and its own outputs.
    assert run.model_graphs[0].statistics[0].count == 60
    run.undo()
    snapshot.assert_restored()
    compact = ChainedFFNPipeline(twice, None, calibration=features(30, 6), pruner=LocalPruner(0.5))
    torch.testing.assert_close(compact.run()(x), zeroed)
    assert block.up.out_features == 5


def test_the_error_for_a_model_without_ffn_lists_its_linear_maps() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.ModuleDict({"probe": nn.Linear(6, 3)}) for _ in range(3))
            self.out = nn.Linear(5, 2)

    with pytest.raises(UnsupportedModelError) as caught:
        find_ffns(Heads())
    message = str(caught.value)
    assert "3 x blocks.*.probe 6 -> 3" in message
    assert "1 x out 5 -> 2" in message
    assert "structure_dict=" in message
    with pytest.raises(UnsupportedModelError, match="no linear maps"):
        find_ffns(nn.Sequential(nn.ReLU()))


@pytest.mark.skipif("internlm3" not in transformers.CONFIG_MAPPING, reason="this transformers has no InternLM3")
def test_a_configuration_that_allows_no_bias_is_not_changed() -> None:
    config = transformers.CONFIG_MAPPING["internlm3"](**LLAMA)
    assert bias_attribute(transformers.AutoModelForCausalLM.from_config(config)) == ""
    assert config.mlp_bias is False
    assert bias_attribute(tiny_llama()) == "mlp_bias"


def test_the_part_of_the_language_model_must_allow_a_bias_too() -> None:
    class Part:
        mlp_bias = False

        def validate(self) -> None:
            if self.mlp_bias:
                raise ValueError("all maps have biases, or none")

    class Composite:
        def __init__(self) -> None:
            self.part = Part()

        def get_text_config(self) -> Part:
            return self.part

    config = Composite()
    assert bias_attribute(SimpleNamespace(config=config)) == ""
    assert config.part.mlp_bias is False


def test_encoder_and_decoder_are_separate_chains() -> None:
    run = ChainedFFNPipeline(tiny_t5(), None, calibration=torch.randint(3, 64, (2, 12)), pruner=GlobalPruner(0.2))
    run.run()
    assert [len(graph.layer_sizes) for graph in run.graph] == [5, 5]
    assert {name.split(".")[0] for name in run.model_graphs[0].graph.names} == {"encoder"}
    assert {name.split(".")[0] for name in run.model_graphs[1].graph.names} == {"decoder"}


def test_edges_of_a_gated_ffn_are_the_sum_of_up_and_gate() -> None:
    model = tiny_llama()
    run = IsolatedFFNPipeline(model, None, calibration=torch.randint(3, 64, (2, 12)), form="zero")
    mlps = [layer.mlp for layer in model.model.layers]
    wanted = [(mlp.up_proj.weight.abs() + mlp.gate_proj.weight.abs()).detach().clone() for mlp in mlps]
    down = [mlp.down_proj.weight.abs().detach().clone() for mlp in mlps]
    run.run()
    for k, entry in enumerate(run.model_graphs):
        torch.testing.assert_close(torch.from_numpy(entry.graph.block(1).toarray()).float(), wanted[k])
        torch.testing.assert_close(torch.from_numpy(entry.graph.block(2).toarray()).float(), down[k])


def test_an_output_map_is_recognised_by_its_shape_in_any_order() -> None:
    class GatedFFN(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w1, self.w2, self.w3 = nn.Linear(6, 10), nn.Linear(10, 6), nn.Linear(6, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.w2(nn.functional.silu(self.w1(x)) * self.w3(x))

    (ffn,) = find_ffns(nn.ModuleDict({"ffn": GatedFFN()}))
    assert ffn.kind == "gated"
    assert [[linear_map.name for linear_map in stage] for stage in ffn.stages] == [["ffn.w1", "ffn.w3"], ["ffn.w2"]]


class OutputFirst(nn.Module):
    """A block whose FFN registers its output map first; with `needs_scale` it does not run on a single tensor."""

    def __init__(self, d: int = 4, f: int = 16, *, needs_scale: bool = False) -> None:
        super().__init__()
        self.down, self.up, self.needs_scale = nn.Linear(f, d), nn.Linear(d, f), needs_scale

    def forward(self, x: torch.Tensor, scale: float | None = None) -> torch.Tensor:
        if self.needs_scale and scale is None:
            raise TypeError("missing scale")
        return x + self.down(torch.relu(self.up(x)))


@pytest.mark.parametrize(("device", "f"), [("cpu", 16), ("cpu", 4), ("cpu", 3), ("meta", 16)])
def test_an_output_map_that_is_registered_first_is_recognised_by_the_order_of_calls(device: str, f: int) -> None:
    with torch.device(device):
        model = nn.Sequential(OutputFirst(f=f), OutputFirst(f=f))
    for ffn in find_ffns(model):
        assert (ffn.kind, ffn.sizes) == ("plain", (4, f, 4))
        assert [stage[0].name.rpartition(".")[2] for stage in ffn.stages] == ["up", "down"]


def test_an_ffn_that_the_order_of_registration_makes_narrow_raises_if_no_run_confirms_it() -> None:
    with pytest.raises(UnsupportedModelError, match=r"0\.down and 0\.up do not show .* which is the output map"):
        find_ffns(nn.ModuleList([OutputFirst(needs_scale=True)]))


def test_a_narrow_ffn_of_a_block_is_found_if_the_configuration_states_the_size_of_the_stream() -> None:
    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(6, 4), nn.Linear(4, 6)

        def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            return x + scale * self.down(torch.relu(self.up(x)))

    model: Any = nn.ModuleList([Narrow(), Narrow()])
    with pytest.raises(UnsupportedModelError, match="which is the output map"):
        find_ffns(model)
    model.config = SimpleNamespace(hidden_size=6)
    assert [ffn.sizes for ffn in find_ffns(model)] == [(6, 4, 6)] * 2


class FusedOutputFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(10, 6), nn.Linear(6, 20)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.up(x).chunk(2, -1)
        return x + self.down(torch.sigmoid(gate) * up)


def test_a_fused_ffn_whose_output_map_is_registered_first_is_found() -> None:
    for ffn in find_ffns(nn.Sequential(FusedOutputFirst(), FusedOutputFirst())):
        assert (ffn.kind, ffn.sizes) == ("fused", (6, 10, 6))
