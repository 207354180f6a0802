"""GGUF files: what llama.cpp would compute from one is computed here by its formulas, and compared with the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

import llmrank
from llmrank import Masks
from llmrank.errors import OptionError, UnsupportedModelError
from llmrank.integrations.gguf import GGUFContent, write_gguf
from llmrank.models import FFNs, find_ffns
from llmrank.models.finding.heads import find_heads
from llmrank.surgery.apply import apply_masks
from tests.llmrank.tiny_models import (
    VOCABULARY,
    WORDS,
    family_model,
    logits,
    named_family,
    token_ids,
    tokenizer,
    write_vocabulary,
)

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
# What a model has besides the defaults of its family.
MODELS = {
    "tied": ("Llama, SmolLM2", {"tie_word_embeddings": True}),
    "biases": ("Llama, SmolLM2", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
    "llama3": ("Llama, SmolLM2", {"rope_parameters": LLAMA3, "max_position_embeddings": 64}),
    "linear": ("Llama, SmolLM2", {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0}}),
    "Mistral": ("Mistral", {"sliding_window": None, "head_dim": 6}),
    "Qwen2": ("Qwen2", {}),
    "Qwen3": ("Qwen3", {"tie_word_embeddings": True, "head_dim": 6}),
}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vocabulary(tmp_path_factory.mktemp("vocabulary") / "dense.gguf")


def pruned(name: str, *, evenly: bool = False) -> Any:
    """A model without neuron 0 of all layers or, unless that is asked for, without 3 + i neurons of layer i."""
    family, changes = MODELS[name]
    return cut(family_model(named_family(family), **changes), lambda position: 1 if evenly else 3 + position)


def cut(model: Any, n_removed: Callable[[int], int]) -> Any:
    """Remove the first neurons of every layer, as many as a function of its number says."""
    ffns = find_ffns(model)
    masks = {
        layer.name: torch.arange(layer.size) >= n_removed(position)
        for position, layer in enumerate(ffns.layers.values())
    }
    apply_masks(model, ffns, Masks(masks))
    return model


def computed_by_llama_cpp(path: Path, ids: list[int]) -> Any:
    """The logits of a sequence by the formulas of llama.cpp, in float64, from nothing but the file."""
    reader = gguf.GGUFReader(path)
    architecture = reader.fields["general.architecture"].contents()
    tensors = {each.name: np.asarray(each.data, np.float64) for each in reader.tensors}
    used = set()

    def setting(name: str) -> Any:
        return reader.fields[f"{architecture}.{name}"].contents()

    def tensor(name: str, default: Any = None) -> Any:
        used.add(name)
        return tensors.get(name, default)

    n_layers, head = setting("block_count"), setting("attention.key_length")

    def of_layer(name: str, layer: int) -> int:
        value = setting(name)
        return int(value[layer] if isinstance(value, list) else value)

    def linear(x: Any, name: str) -> Any:
        weight = tensor(f"{name}.weight")
        return x @ weight.T + tensor(f"{name}.bias", 0.0)

    def norm(x: Any, name: str) -> Any:
        size = np.sqrt((x * x).mean(-1, keepdims=True) + setting("attention.layer_norm_rms_epsilon"))
        return x / size * tensor(f"{name}.weight")

    def rotated(x: Any) -> Any:  # (tokens, heads, head)
        pairs = np.arange(0, head, 2)
        frequencies = setting("rope.freq_base") ** (-pairs / head) / tensor("rope_freqs.weight", 1.0)
        angles = np.arange(len(x))[:, None, None] * frequencies
        are_neighbours = architecture in ("llama", "deci")
        a, b = (x[..., 0::2], x[..., 1::2]) if are_neighbours else (x[..., : head // 2], x[..., head // 2 :])
        turned = a * np.cos(angles) - b * np.sin(angles), a * np.sin(angles) + b * np.cos(angles)
        return np.stack(turned, -1).reshape(x.shape) if are_neighbours else np.concatenate(turned, -1)

    embedding = tensor("token_embd.weight")
    x = embedding[ids]
    future = np.triu(np.full((len(ids), len(ids)), -np.inf), 1)
    for i in range(n_layers):
        heads, groups = of_layer("attention.head_count", i), of_layer("attention.head_count_kv", i)
        read = norm(x, f"blk.{i}.attn_norm")
        if architecture == "openelm":
            joined = linear(read, f"blk.{i}.attn_qkv").reshape(len(ids), heads + 2 * groups, head)
            q, k, v = np.split(joined, [heads, heads + groups], axis=1)
        else:
            q, k, v = (
                linear(read, f"blk.{i}.attn_{part}").reshape(len(ids), n, head)
                for part, n in (("q", heads), ("k", groups), ("v", groups))
            )
        if architecture in ("openelm", "qwen3"):
            q, k = norm(q, f"blk.{i}.attn_q_norm"), norm(k, f"blk.{i}.attn_k_norm")
        q, k = rotated(q), rotated(k)
        mixed = []
        for h in range(heads):
            group = h // (heads // groups)
            scores = q[:, h] @ k[:, group].T / np.sqrt(head) + future
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            mixed.append(shares / shares.sum(-1, keepdims=True) @ v[:, group])
        x = x + linear(np.concatenate(mixed, -1), f"blk.{i}.attn_output")
        read = norm(x, f"blk.{i}.ffn_norm")
        gate, up = (linear(read, f"blk.{i}.ffn_{part}") for part in ("gate", "up"))
        assert gate.shape[1] == of_layer("feed_forward_length", i)
        x = x + linear(gate / (1.0 + np.exp(-gate)) * up, f"blk.{i}.ffn_down")
    found = norm(x, "output_norm") @ tensor("output.weight", embedding).T
    assert used >= tensors.keys()  # llama.cpp refuses a file with more tensors than it reads
    return found


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_would_compute_what_the_uneven_model_computes(name: str, vocabulary: Path, tmp_path: Path) -> None:
    model, ids = pruned(name), token_ids(1, 20)
    content = write_gguf(model, tmp_path / "a.gguf", vocabulary, vocabulary=tokenizer())
    sizes = tuple(layer.mlp.down_proj.in_features for layer in model.model.layers)
    architecture = "openelm" if name == "Qwen3" else "deci"
    assert content == GGUFContent(architecture, "F32", sizes, (tmp_path / "a.gguf").stat().st_size)
    assert len(set(sizes)) > 1
    found = computed_by_llama_cpp(tmp_path / "a.gguf", ids[0].tolist())
    assert np.abs(found - logits(model, ids)[0].double().numpy()).max() < 1e-4 * np.abs(found).max()


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_itself_computes_it(name: str, vocabulary: Path, tmp_path: Path) -> None:
    library = pytest.importorskip("llama_cpp")  # it is compiled when it is installed
    for evenly in (False, True):
        model, ids = pruned(name, evenly=evenly), token_ids(1, 20)
        write_gguf(model, tmp_path / "a.gguf", vocabulary)
        # Keys and values in float32.
        run = library.Llama(str(tmp_path / "a.gguf"), n_ctx=64, logits_all=True, type_k=0, type_v=0, verbose=False)
        run.eval(ids[0].tolist())
        assert np.abs(run.scores[:20] - logits(model, ids)[0].numpy()).max() < 1e-4
        run.close()


@pytest.mark.parametrize("name", ["tied", "biases", "Mistral", "Qwen2", "Qwen3"])
def test_layers_may_have_different_numbers_of_heads(name: str, vocabulary: Path, tmp_path: Path) -> None:
    model, ids = pruned(name), token_ids(1, 20)
    attentions = FFNs(find_heads(model, find_ffns(model)).values())
    masks = {each: torch.arange(size) >= (size // 2 if "1" in each else 0) for each, size in attentions.sizes.items()}
    apply_masks(model, attentions, Masks(masks))
    write_gguf(model, tmp_path / "a.gguf", vocabulary)
    fields = gguf.GGUFReader(tmp_path / "a.gguf").fields
    architecture = fields["general.architecture"].contents()
    assert fields[f"{architecture}.attention.head_count"].contents() == [4, 2]
    assert fields[f"{architecture}.attention.head_count_kv"].contents() == [2, 1]
    expected = logits(model, ids)[0].double().numpy()
    assert (
        np.abs(computed_by_llama_cpp(tmp_path / "a.gguf", ids[0].tolist()) - expected).max()
        < 1e-4 * np.abs(expected).max()
    )


@pytest.mark.parametrize("name", ["tied", "Qwen2", "Qwen3"])
def test_layers_of_one_width_are_of_the_usual_architecture(name: str, vocabulary: Path, tmp_path: Path) -> None:
    model, ids = pruned(name, evenly=True), token_ids(1, 20)
    usual = {"tied": "llama", "Qwen2": "qwen2", "Qwen3": "qwen3"}[name]
    assert write_gguf(model, tmp_path / "a.gguf", vocabulary).architecture == usual
    found = computed_by_llama_cpp(tmp_path / "a.gguf", ids[0].tolist())
    assert np.abs(found - logits(model, ids)[0].double().numpy()).max() < 1e-4 * np.abs(found).max()
    # transformers takes every head of a qwen3 for one of 128 entries.
    if name != "Qwen3":
        again = llmrank.load(tmp_path / "a.gguf").model
        assert torch.allclose(logits(again, ids), logits(model, ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["biases", "llama3", "Qwen3"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_matrices_have_the_dtype_of_the_model(
    name: str, dtype: torch.dtype, vocabulary: Path, tmp_path: Path
) -> None:
    model = pruned(name)
    write_gguf(model, tmp_path / "exact.gguf", vocabulary)
    model.to(dtype)  # also the frequencies of the rotary embeddings
    content = write_gguf(model, tmp_path / "a.gguf", vocabulary)
    assert content.dtype == {torch.float16: "F16", torch.bfloat16: "BF16"}[dtype]
    tensors = {each.name: each for each in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    exact = {each.name: each for each in gguf.GGUFReader(tmp_path / "exact.gguf").tensors}
    assert tensors.keys() == exact.keys()
    if name == "llama3":
        assert np.array_equal(tensors["rope_freqs.weight"].data, exact["rope_freqs.weight"].data)
    for each in tensors.values():
        assert each.tensor_type.name == (content.dtype if len(each.shape) > 1 else "F32")
        if each.name == "blk.1.ffn_down.weight":
            raw = torch.from_numpy(np.array(each.data).view(np.int16)).view(dtype)
            assert torch.equal(raw.reshape(-1), model.model.layers[1].mlp.down_proj.weight.reshape(-1))


def test_the_tokenizer_is_copied_whole(vocabulary: Path, tmp_path: Path) -> None:
    write_gguf(pruned("tied"), tmp_path / "a.gguf", vocabulary, name="a pruned model")
    fields = gguf.GGUFReader(tmp_path / "a.gguf").fields
    for key, field in gguf.GGUFReader(vocabulary).fields.items():
        if key.startswith("tokenizer."):
            assert (fields[key].contents(), fields[key].types) == (field.contents(), field.types)
    assert fields["general.name"].contents() == "a pruned model"


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        (
            "Gemma",
            {},
            r"computes a GemmaForCausalLM \(gemma\); expected a causal model of the types llama, mistral",
        ),
        ("Qwen3", {"tie_word_embeddings": False}, "architecture openelm has no place for lm_head.weight"),
        ("Qwen3", {"tie_word_embeddings": True, "attention_bias": True}, "openelm has no place for .*q_proj.bias"),
        ("Llama, SmolLM2", {"hidden_act": "gelu"}, "the activation function gelu"),
        ("Mistral", {"sliding_window": 8}, "a sliding window of attention"),
        (
            "Llama, SmolLM2",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0}},
            "rotary embeddings of the type dynamic",
        ),
    ],
)
def test_a_model_that_llama_cpp_computes_otherwise_is_refused(
    family: str, changes: dict[str, Any], reason: str, vocabulary: Path, tmp_path: Path
) -> None:
    model = cut(family_model(named_family(family), **changes), lambda position: position)
    with pytest.raises(UnsupportedModelError, match=reason):
        write_gguf(model, tmp_path / "a.gguf", vocabulary)
    assert not list(tmp_path.iterdir())


def test_layers_of_one_width_with_further_biases_are_written_as_if_they_differed(
    vocabulary: Path, tmp_path: Path
) -> None:
    model = pruned("Qwen2", evenly=True)
    for layer in model.model.layers:  # as a repair makes them
        layer.mlp.down_proj.bias = torch.nn.Parameter(torch.randn(layer.mlp.down_proj.out_features))
    ids = token_ids(1, 20)
    assert write_gguf(model, tmp_path / "a.gguf", vocabulary).architecture == "deci"
    found = computed_by_llama_cpp(tmp_path / "a.gguf", ids[0].tolist())
    assert np.abs(found - logits(model, ids)[0].double().numpy()).max() < 1e-4 * np.abs(found).max()
    model = cut(family_model(named_family("Qwen3"), tie_word_embeddings=True, attention_bias=True), lambda _: 1)
    with pytest.raises(UnsupportedModelError, match=r"has no place for .*bias"):
        write_gguf(model, tmp_path / "b.gguf", vocabulary)


def test_a_window_as_long_as_the_context_hides_nothing(vocabulary: Path, tmp_path: Path) -> None:
    model = family_model(named_family("Mistral"), sliding_window=64, max_position_embeddings=64)
    assert write_gguf(model, tmp_path / "a.gguf", vocabulary).architecture == "llama"


def test_masked_weights_and_unknown_parameters_are_refused(vocabulary: Path, tmp_path: Path) -> None:
    model = pruned("tied")
    model.model.layers[0].mlp.extra = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(UnsupportedModelError, match=r"architecture deci has no place for model.layers.0.mlp.extra"):
        write_gguf(model, tmp_path / "a.gguf", vocabulary)
    model = family_model(named_family("Llama, SmolLM2"))
    ffns = find_ffns(model)
    masks = {layer.name: torch.arange(layer.size) > 0 for layer in ffns.layers.values()}
    apply_masks(model, ffns, Masks(masks), form="mask")
    with pytest.raises(UnsupportedModelError, match="masked; prune it in the compact form"):
        write_gguf(model, tmp_path / "a.gguf", vocabulary)
    assert not list(tmp_path.iterdir())


def test_a_file_without_the_tokenizer_of_the_model_is_refused(vocabulary: Path, tmp_path: Path) -> None:
    model, output = pruned("tied"), tmp_path / "a.gguf"
    (tmp_path / "text.gguf").write_text("no such file")
    with pytest.raises(OptionError, match=r"text.gguf cannot be read as a GGUF file with a tokenizer"):
        write_gguf(model, output, tmp_path / "text.gguf")
    with pytest.raises(OptionError, match=r"absent.gguf cannot be read as a GGUF file with a tokenizer"):
        write_gguf(model, output, tmp_path / "absent.gguf")
    short = write_vocabulary(tmp_path / "short.gguf", WORDS[:-1])
    with pytest.raises(OptionError, match=rf"has {VOCABULARY - 1} tokens and the model {VOCABULARY}"):
        write_gguf(model, output, short)
    other = write_vocabulary(tmp_path / "other.gguf", [*WORDS[:8], "else", *WORDS[9:]])
    with pytest.raises(OptionError, match=r"token 8 is 'else' in .*other.gguf and 'w8' in the model's tokenizer"):
        write_gguf(model, output, other, vocabulary=tokenizer())
    ending = write_vocabulary(tmp_path / "ending.gguf", [*WORDS[:2], "<end>", *WORDS[3:]])
    with pytest.raises(OptionError, match=r"token 2 is '<end>' in .*ending.gguf and '\[EOS\]'"):
        write_gguf(model, output, ending, vocabulary=tokenizer())
    numbers = gguf.GGUFWriter(tmp_path / "numbers.gguf", "llama")
    numbers.add_array("tokenizer.ggml.tokens", [1, 2, 3])
    numbers.write_header_to_file()
    numbers.write_kv_data_to_file()
    numbers.close()
    with pytest.raises(OptionError, match=r"numbers.gguf holds no tokenizer"):
        write_gguf(model, output, tmp_path / "numbers.gguf")
    whole = vocabulary.read_bytes()
    (tmp_path / "letters.gguf").write_bytes(whole.replace(b"w9", b"w\xff"))
    with pytest.raises(OptionError, match=r"letters.gguf cannot be read"):
        write_gguf(model, output, tmp_path / "letters.gguf")
    with pytest.raises(OptionError, match="holds the tokenizer; name another file"):
        write_gguf(model, vocabulary, vocabulary)
    assert vocabulary.read_bytes() == whole
    assert not output.exists()
