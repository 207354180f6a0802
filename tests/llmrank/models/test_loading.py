"""Loading: a checkpoint must match its configuration, and its code runs only with permission."""

from __future__ import annotations

import builtins
import json
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file, save_file

import llmrank
from llmrank.errors import CheckpointError, ModelSourceError
from llmrank.models.compat import gguf_read_once
from llmrank.models.loading import load_pretrained
from llmrank.prune import BasePruner, GlobalPruner, LocalPruner
from tests.llmrank.commands import SHORT, refused
from tests.llmrank.plain_pipelines import ChainedFFNPipeline
from tests.llmrank.tiny_mixtures import tiny_mixture
from tests.llmrank.tiny_models import LLAMA, family_model, logits, named_family, tiny_llama, token_ids, tokenizer
from tests.tables import table

IDS = token_ids(2, 8, seed=5)
BERT = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def model(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of a checkpoint, to be damaged."""
    return Path(shutil.copytree(checkpoint, tmp_path / "model"))


def edit(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def change(directory: Path, changed: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Rewrite the weights after `changed` has edited them."""
    tensors = {name: tensor.clone() for name, tensor in load_file(directory / "model.safetensors").items()}
    changed(tensors)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


# --- tensors


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (UP, f"missing: {UP};"),
        ("model.embed_tokens", r"missing: model\.embed_tokens\.weight;"),
        ("lm_head", r"missing: lm_head\.weight;"),
        ("model.layers.1.", r"missing: model\.layers\.1\.input_layernorm\.weight, .* and 5 more;"),
    ],
)
def test_missing_tensors_are_named(model: Path, part: str, message: str) -> None:
    change(model, lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith(part)])
    for load in (llmrank.load, load_pretrained):
        with pytest.raises(ModelSourceError, match=message):
            load(model)


@pytest.mark.parametrize("command", ["prune", "inspect", "evaluate"])
def test_commands_report_incomplete_checkpoints(
    model: Path, corpus: Path, tmp_path: Path, capsys: Any, command: str, transformers_log_as_it_was: None
) -> None:
    change(model, lambda tensors: tensors.pop(UP))
    output = tmp_path / "out"
    options = ["--text", corpus] if command == "evaluate" else ["--output", output, "--calibration", corpus, *SHORT]
    assert f"missing: {UP}" in refused(capsys, command, model, *options)
    assert not output.exists()


def test_a_shard_that_the_index_omits_is_reported(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    for number in (0, 1):
        part = {name: tensor for name, tensor in tensors.items() if ("layers.1." in name) == bool(number)}
        save_file(part, model / f"model-0000{number + 1}-of-00002.safetensors", {"format": "pt"})
    index = {name: "model-00001-of-00002.safetensors" for name in tensors if "layers.1." not in name}
    text = json.dumps({"metadata": {}, "weight_map": index})
    (model / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelSourceError, match=r"missing: model\.layers\.1\.input_layernorm\.weight"):
        llmrank.load(model)


def test_unexpected_tensors_and_other_shapes_are_named(model: Path) -> None:
    def changed(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.2.mlp.up_proj.weight"] = torch.zeros(40, 16)
        tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(16)
        tensors[UP] = torch.zeros(41, 16)

    change(model, changed)
    with pytest.raises(ModelSourceError) as refusal:
        llmrank.load(model)
    assert (
        "unexpected: model.layers.0.self_attn.q_proj.bias, model.layers.2.mlp.up_proj.weight; "
        f"of another shape: {UP} (41, 16), not (40, 16);"
    ) in str(refusal.value)


def test_buffers_of_earlier_versions_are_ignored(model: Path, tmp_path: Path) -> None:
    change(model, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}))
    assert torch.equal(logits(llmrank.load(model).model, IDS), logits(tiny_llama(), IDS))
    neo = transformers.GPTNeoConfig(
        vocab_size=64, hidden_size=16, num_layers=1, num_heads=4, attention_types=[[["global"], 1]]
    )
    llmrank.save(tmp_path / "neo", transformers.GPTNeoForCausalLM(neo))
    masks = {
        f"transformer.h.0.attn.attention.{name}": torch.ones(1, 1, 8, 8, dtype=torch.uint8)
        for name in ("bias", "masked_bias")
    }
    change(tmp_path / "neo", lambda tensors: tensors.update(masks))
    llmrank.load(tmp_path / "neo")


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("BertForPreTraining", "BertForMaskedLM"),
        ("BertForPreTraining", "BertModel"),
        ("LlamaForCausalLM", "LlamaModel"),
        ("T5ForConditionalGeneration", "T5EncoderModel"),
    ],
)
def test_heads_that_the_class_lacks_are_ignored(tmp_path: Path, written: str, read: str) -> None:
    config: Any = transformers.BertConfig(**BERT)
    if written.startswith("Llama"):
        config = transformers.LlamaConfig(**LLAMA)
    if written.startswith("T5"):
        config = family_model(named_family("T5")).config
    llmrank.save(tmp_path / "model", getattr(transformers, written)(config))
    edit(tmp_path / "model" / "config.json", architectures=[read])
    assert type(llmrank.load(tmp_path / "model").model).__name__ == read
    stray = {"layers.7.mlp.up_proj.weight": torch.ones(2)}
    change(tmp_path / "model", lambda tensors: tensors.update(stray))
    with pytest.raises(ModelSourceError, match=r"unexpected: layers\.7\.mlp\.up_proj\.weight;"):
        llmrank.load(tmp_path / "model")


def test_a_missing_head_is_reported(tmp_path: Path) -> None:
    llmrank.save(tmp_path / "model", transformers.LlamaModel(transformers.LlamaConfig(**LLAMA)))
    assert type(llmrank.load(tmp_path / "model").model).__name__ == "LlamaModel"
    edit(tmp_path / "model" / "config.json", architectures=["LlamaForCausalLM"])
    with pytest.raises(ModelSourceError, match=r"missing: lm_head\.weight;"):
        llmrank.load(tmp_path / "model")


# --- code

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
Path({trace!r}).write_text("run")
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
class KnownForCausalLM(LlamaForCausalLM):
    pass
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def trace(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that exists once the checkpoint's code has run; every question is answered with yes."""
    # transformers copies the code into this directory and imports it from there.
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    trace = tmp_path / "trace"
    (model / "own.py").write_text(CODE.format(trace=str(trace)))
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    return trace


UNKNOWN = {
    "model_type": "own",
    "architectures": ["OwnForCausalLM"],
    "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"},
}
KNOWN = {
    "architectures": ["KnownForCausalLM"],
    "auto_map": {"AutoModel": "own.OwnForCausalLM", "AutoModelForCausalLM": "own.KnownForCausalLM"},
}


@pytest.mark.parametrize("entries", [UNKNOWN, KNOWN], ids=["unknown type", "known type"])
def test_code_is_not_run_without_permission(
    model: Path,
    trace: Path,
    tmp_path: Path,
    capsys: Any,
    corpus: Path,
    entries: dict[str, Any],
    transformers_log_as_it_was: None,
) -> None:
    edit(model / "config.json", **entries)
    message = refused(capsys, "prune", model, "--output", tmp_path / "out", "--calibration", corpus, *SHORT)
    assert "does not know the architecture" in message
    assert "pass --trust-remote-code" in message
    assert not trace.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("pruner", [LocalPruner(0.5), GlobalPruner(0.5)], ids=["uniform", "uneven"])
@pytest.mark.parametrize("entries", [UNKNOWN, KNOWN], ids=["unknown type", "known type"])
def test_trusted_code_is_used_and_saved_with_the_model(
    model: Path, trace: Path, tmp_path: Path, entries: dict[str, Any], pruner: BasePruner
) -> None:
    edit(model / "config.json", **entries)
    first = llmrank.load(model, trust_remote_code=True)
    assert trace.exists()
    for number in (1, 2):
        assert type(first.model).__name__ == entries["architectures"][0]
        assert type(first.model).__module__.startswith("transformers_modules.")
        ChainedFFNPipeline(first.model, None, pruner=pruner, calibration=token_ids()).run()
        saved = llmrank.save(tmp_path / f"saved-{number}", first.model, first.tokenizer)
        again = llmrank.load(saved, trust_remote_code=True)
        assert torch.equal(logits(again.model, IDS), logits(first.model, IDS))
        first = again


def test_code_is_not_needed_if_transformers_has_the_class(model: Path, trace: Path) -> None:
    edit(model / "config.json", **{**KNOWN, "architectures": ["LLaMAForCausalLM"]})
    assert type(llmrank.load(model).model) is transformers.LlamaForCausalLM
    assert not trace.exists()


def test_a_tokenizer_in_untrusted_code_gives_a_warning(model: Path, trace: Path) -> None:
    edit(
        model / "tokenizer_config.json",
        tokenizer_class="OwnTokenizer",
        auto_map={"AutoTokenizer": [None, "own.OwnTokenizer"]},
    )
    with pytest.warns(UserWarning, match=r"the tokenizer of .* was not run.*--trust-remote-code"):
        loaded = llmrank.load(model)
    assert loaded.tokenizer is None
    assert not trace.exists()
    assert type(llmrank.load(model, trust_remote_code=True).tokenizer).__name__ == "OwnTokenizer"
    (model / "own.py").write_text("raise OSError('no such thing')")
    with pytest.warns(UserWarning, match=r"cannot be loaded \(no such thing\)"):
        assert llmrank.load(model, trust_remote_code=True).tokenizer is None


# --- names


@table("architectures", [["LlamaConfig"], ["no_grad"], ["Unheard"], None])
def test_only_model_classes_are_architectures(model: Path, architectures: Any) -> None:
    edit(model / "config.json", architectures=architectures)
    assert type(llmrank.load(model).model) is transformers.LlamaForCausalLM


@pytest.mark.parametrize("name", ["\udcff", "./a\udcff", "\udcff.gguf"])
def test_names_that_are_not_utf_8_raise(name: str) -> None:
    with pytest.raises(ModelSourceError, match=r"udcff.*is not valid UTF-8"):
        llmrank.load(name)


def test_an_encoder_with_its_tokenizer_loads_the_same(tmp_path: Path) -> None:
    encoder = transformers.BertModel(transformers.BertConfig(**BERT)).eval()
    llmrank.save(tmp_path / "model", encoder, tokenizer())
    positions = {"embeddings.position_ids": torch.arange(512)[None]}
    change(tmp_path / "model", lambda tensors: tensors.update(positions))
    again = llmrank.load(tmp_path / "model").model
    with torch.no_grad():
        assert torch.equal(again(input_ids=IDS).last_hidden_state, encoder(input_ids=IDS).last_hidden_state)


def test_a_damaged_tokenizer_gives_a_warning(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    whole = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text(whole[: len(whole) // 2], encoding="utf-8")
    with pytest.warns(UserWarning, match="the tokenizer of .* cannot be loaded"):
        assert load_pretrained(tmp_path).tokenizer is None


def test_a_model_without_a_tokenizer_loads_without_a_warning(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    assert load_pretrained(tmp_path).tokenizer is None
    assert load_pretrained(tmp_path, trust_remote_code=True).tokenizer is None


def test_weights_in_mxfp4_are_dequantised_with_a_sentence(tmp_path: Path) -> None:
    """Pairs of 4-bit numbers, and one power of two for 32 of them, as gpt-oss stores its experts."""
    model = tiny_mixture("gpt_oss", intermediate_size=32).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    state, generator = load_file(tmp_path / "model.safetensors"), torch.Generator().manual_seed(0)
    for name in [name for name in state if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        n_experts, n_in, n_out = state.pop(name).shape
        shape = (n_experts, n_out, n_in // 32)
        state[f"{name}_blocks"] = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8, generator=generator)
        state[f"{name}_scales"] = torch.randint(122, 126, shape, dtype=torch.uint8, generator=generator)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.embed_tokens"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match=r"are quantised \(mxfp4\) and were dequantised to bfloat16 on loading"):
        loaded = load_pretrained(tmp_path).model
    values = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]
    blocks = state["model.layers.0.mlp.experts.down_proj_blocks"]
    scales = state["model.layers.0.mlp.experts.down_proj_scales"].int()
    for k in range(4):
        byte = int(blocks[3, 5, 0, k])
        for nibble, column in ((byte & 15, 2 * k), (byte >> 4, 2 * k + 1)):
            expected = values[nibble] * 2.0 ** (int(scales[3, 5, 0]) - 127)
            assert loaded.model.layers[0].mlp.experts.down_proj[3, column, 5].item() == expected
    pruned = llmrank.prune_model(loaded, None, 0.25, targets="experts", repair="none", calibration=token_ids(4, 16))
    if Version(transformers.__version__) < Version("5.24"):  # it writes patterns as the names of these tensors
        with pytest.raises(CheckpointError, match=r"unexpected: down_proj\$, gate_up_proj\$"):
            pruned.save(tmp_path / "pruned")
    else:
        pruned.save(tmp_path / "pruned")
        assert not hasattr(llmrank.load(tmp_path / "pruned").model.config, "quantization_config")


def test_adapters_without_their_model_say_how_to_merge_them(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelSourceError, match=r"holds adapters of peft.*merge_and_unload\(\), save that"):
        llmrank.load(tmp_path)


def test_a_checkpoint_that_cannot_hold_its_blocks_is_refused_at_once(tmp_path: Path) -> None:
    llmrank.save(tmp_path / "model", tiny_llama())
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"num_hidden_layers": 10**9}), encoding="utf-8")
    with pytest.raises(ModelSourceError, match=r"claims 1,000,000,000 blocks of width \d+, but has only [\d,]+ bytes"):
        llmrank.load(tmp_path / "model")
    # Without its width, a configuration has that of the first model of its kind, which takes more than a gigabyte.
    path.write_text(
        json.dumps({name: value for name, value in config.items() if name != "hidden_size"}), encoding="utf-8"
    )
    with pytest.raises(ModelSourceError, match=r"claims 2 blocks of width 4,096, but has only [\d,]+ bytes"):
        llmrank.load(tmp_path / "model")


def test_a_gguf_file_that_cannot_hold_its_blocks_is_refused_at_once(tmp_path: Path) -> None:
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    for name, value in {"block_count": 10_000, "embedding_length": 64, "feed_forward_length": 128}.items():
        writer.add_uint32(f"llama.{name}", value)
    writer.add_tensor("output_norm.weight", np.ones(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelSourceError, match=r"claims 10,000 blocks of width 64, but has only \d+ bytes"):
        load_pretrained(tmp_path / "a.gguf")


@pytest.mark.parametrize("settings", [{"quant_method": "fp8"}, {"quant_method": "gptq"}, {"quant_method": 7}, [1], "a"])
def test_odd_settings_of_a_quantiser_load_or_are_refused(settings: Any, tmp_path: Path) -> None:
    llmrank.save(tmp_path / "model", tiny_llama(), tokenizer())
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": settings}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert load_pretrained(tmp_path / "model").model is not None
        except ModelSourceError as error:
            message = str(error)
        else:
            return
    assert "cannot load" in message


def test_versions_of_transformers_that_do_not_find_gguf_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, list[str]] = {}  # as on Python 3.10
    monkeypatch.setattr("transformers.utils.import_utils.PACKAGE_DISTRIBUTION_MAPPING", found, raising=False)
    with gguf_read_once():
        assert found == {"gguf": ["gguf"]}
