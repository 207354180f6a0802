"""Checkpoints are written completely or not at all, and load with the widths that they were saved with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

import llmrank
from llmrank.errors import CheckpointError, ModelSourceError, OptionError
from llmrank.models import find_ffns
from llmrank.models.loading import load_pretrained, parse_device, parse_dtype
from llmrank.prune import LocalPruner
from llmrank.prune.masks import Masks
from llmrank.surgery.apply import apply_masks
from llmrank.surgery.atomic import check_output
from llmrank.surgery.checkpoint import load, read_report, save
from tests.llmrank.plain_pipelines import ChainedFFNPipeline
from tests.llmrank.tiny_models import LLAMA, logits, mlp, tiny_llama, token_ids, tokenizer
from tests.tables import table

IDS = token_ids(2, 8, seed=5)


def uneven(model: Any) -> Masks:
    """Keep 30 neurons in the first layer, and 20 in the second."""
    masks = Masks({f"model.layers.{k}.mlp": torch.arange(40) % 4 < 3 - k for k in range(2)})
    apply_masks(model, find_ffns(model), masks)
    return masks


def edit_config(directory: Path, **entries: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_save_writes_all_files(tmp_path: Path) -> None:
    model, tok = tiny_llama(), tokenizer()
    masks = uneven(model)
    wanted = logits(model, IDS)
    target = save(tmp_path / "a" / "b", model, tok, masks, {"format": 1})
    assert target == tmp_path / "a" / "b"
    assert Masks.load(target / "masks.safetensors") == masks
    assert json.loads((target / "report.json").read_text()) == {"format": 1}
    loaded = load(target)
    assert torch.equal(logits(loaded.model, IDS), wanted)
    assert loaded.tokenizer("w4 w9")["input_ids"] == [1, 4, 9, 2]
    assert not loaded.model.training
    assert loaded.source == str(target)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def test_loaded_checkpoint_prunes_and_saves_again(tmp_path: Path) -> None:
    model = tiny_llama()
    uneven(model)
    save(tmp_path / "once", model)
    again = load(tmp_path / "once").model
    pipeline = ChainedFFNPipeline(again, None, pruner=LocalPruner(0.5), calibration=token_ids())
    pipeline.run()
    wanted = logits(again, IDS)
    save(tmp_path / "twice", again, masks=pipeline.masks)
    twice = load(tmp_path / "twice").model
    assert [layer.mlp.up_proj.out_features for layer in twice.model.layers] == [15, 10]
    assert torch.equal(logits(twice, IDS), wanted)
    assert type(twice).__name__ == "LlamaForCausalLM"


@pytest.mark.parametrize("form", ["zero", "mask"])
def test_forms_of_full_size_load_in_stock_transformers(tmp_path: Path, form: Any) -> None:
    model = tiny_llama(tie_word_embeddings=True)
    ChainedFFNPipeline(model, None, calibration=token_ids(), form=form).run()
    wanted = logits(model, IDS)
    save(tmp_path / "out", model)
    stock, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    torch.testing.assert_close(logits(stock, IDS), wanted)
    # A copy is saved: the model keeps its masks.
    torch.testing.assert_close(logits(model, IDS), wanted)


def test_dtype_and_uneven_widths_together(tmp_path: Path) -> None:
    model = tiny_llama().to(torch.bfloat16)
    uneven(model)
    save(tmp_path / "out", model)
    assert {p.dtype for p in load(tmp_path / "out").model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in load(tmp_path / "out", dtype="float32").model.parameters()} == {torch.float32}


def untouched(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


@table(
    ("changed", "message"),
    [
        ({"masks": set()}, "masks must be Masks, or None, got set"),
        ({"report": "x"}, "report must be a mapping, or None, got 'x'"),
        ({"report": {"a": float("nan")}}, "the report cannot be written as JSON .*nan.*; give plain values"),
        ({"tokenizer": 5}, "tokenizer must be a tokenizer of transformers, or None, got 5"),
        ({"shard_bytes": "5"}, "shard_bytes must be a number of bytes, or None, got '5'"),
    ],
)
def test_arguments_of_wrong_types_are_refused_first(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=message):
        save(tmp_path / "model", tiny_llama(), **changed)
    assert list(tmp_path.iterdir()) == []


def test_existing_outputs_are_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    monkeypatch.setattr(type(model), "save_pretrained", lambda *_, **__: pytest.fail("began to write"))
    full = tmp_path / "full"
    full.mkdir()
    (full / "config.json").write_text("{}")
    (tmp_path / "file").write_text("text")
    before = untouched(tmp_path)
    for target, message in (
        (full, "exists and is not empty"),
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "below", "is a file, so nothing can be written below it"),
        (tmp_path / "file" / "far" / "below", "is a file, so nothing can be written below it"),
    ):
        with pytest.raises(CheckpointError, match=message):
            check_output(target)
        with pytest.raises(CheckpointError, match=message):
            save(target, model)
    assert untouched(tmp_path) == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(CheckpointError, match="is not writable"):
        check_output(tmp_path / "closed" / "out")


def test_empty_directory_is_used(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    save(tmp_path / "out", tiny_llama())
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")])
@pytest.mark.parametrize("existing", [True, False])
def test_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, existing: bool
) -> None:
    def full(_self: Any, directory: Path, **_: Any) -> None:
        (Path(directory) / "model.safetensors").write_bytes(b"half")
        raise error

    model = tiny_llama()
    monkeypatch.setattr(type(model), "save_pretrained", full)
    if existing:
        (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match="No space left on device"):
        save(tmp_path / "out", model)
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if existing else [])
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
def test_other_failures_pass_through_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException]
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise failure

    model = tiny_llama()
    monkeypatch.setattr(type(model), "save_pretrained", broken)
    with pytest.raises(failure):
        save(tmp_path / "out", model)
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_json_cannot_hold_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        save(tmp_path / "out", tiny_llama(), report={"perplexity": float("nan")})
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, sys
from pathlib import Path
from llmrank.surgery.checkpoint import save
from tests.llmrank.tiny_models import tiny_llama

class Killed(type(tiny_llama())):
    def save_pretrained(self, directory, **_):
        (Path(directory) / "config.json").write_text("{}")
        (Path(directory) / "model.safetensors").write_bytes(b"half")
        os._exit(9)

model = tiny_llama()
model.__class__ = Killed
save(sys.argv[1], model)
"""


@pytest.mark.slow
def test_kill_in_the_middle_leaves_no_target(tmp_path: Path) -> None:
    outcome = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "out")], capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 9, outcome.stderr
    assert not (tmp_path / "out").exists()
    # It had begun: its files are beside the target, under a name that no loader reads.
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.")
    assert left.name.endswith(".partial")
    save(tmp_path / "out", tiny_llama())
    assert load(tmp_path / "out").model is not None
    # The next run to the same target has removed them.
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_message_for_a_plain_module_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a transformers model; save its state_dict"):
        save(tmp_path / "out", mlp(4, 6, 2))
    assert list(tmp_path.iterdir()) == []


class OwnLlama(type(tiny_llama())):  # type: ignore[misc]
    """A class that transformers does not know."""


def test_a_configuration_of_another_model_fails(tmp_path: Path) -> None:
    for kind in (type(tiny_llama()), OwnLlama):
        model = tiny_llama()
        model.__class__ = kind
        model.config.intermediate_size = 30
        with pytest.raises(CheckpointError, match=r"0\.mlp\.down_proj\.weight \(16, 40\), not \(16, 30\).* and 2 more"):
            save(tmp_path / "out", model)
        model.config.intermediate_size, model.config.num_hidden_layers = 40, 3
        with pytest.raises(CheckpointError, match=r"missing: model\.layers\.2\.input_layernorm\.weight"):
            save(tmp_path / "out", model)
        model.config.num_hidden_layers = 1
        with pytest.raises(CheckpointError, match=r"unexpected: model\.layers\.1\.input_layernorm\.weight"):
            save(tmp_path / "out", model)
        assert list(tmp_path.iterdir()) == []
        model.config.num_hidden_layers = 2
        save(tmp_path / kind.__name__, model)
        (tmp_path / kind.__name__).rename(tmp_path.with_name(f"{tmp_path.name}-{kind.__name__}"))


def test_wrong_widths_in_the_configuration_fail(tmp_path: Path) -> None:
    model = tiny_llama()
    uneven(model)
    model.config.llmrank_widths = {"model.layers.0.mlp": 20, "model.layers.1.mlp": 30}
    with pytest.raises(CheckpointError, match=r"0\.mlp\.down_proj\.weight \(16, 30\), not \(16, 20\)"):
        save(tmp_path / "out", model)
    model.config.llmrank_widths = {"model.layers.0.mlp": 30}
    with pytest.raises(CheckpointError, match="llmrank_widths does not fit LlamaForCausalLM"):
        save(tmp_path / "out", model)
    assert list(tmp_path.iterdir()) == []


def test_experts_whose_tensors_are_merged_on_loading_pass(tmp_path: Path) -> None:
    """The files hold one tensor for each expert, the model one tensor for all."""
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
    model = transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**LLAMA, **experts)).eval()
    save(tmp_path / "out", model)
    assert torch.equal(logits(load(tmp_path / "out").model, IDS), logits(model, IDS))


def test_a_model_without_data_is_refused(tmp_path: Path) -> None:
    model = tiny_llama()
    model.model.layers[1].self_attn.to("meta")
    with pytest.raises(
        CheckpointError, match=r"4 tensors, model\.layers\.1\.self_attn\.q_proj\.weight the first, have no data"
    ):
        save(tmp_path / "out", model)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = tiny_llama()
    uneven(model)
    return save(tmp_path / "out", model)


@table(
    ("widths", "message"),
    [
        ({"model.layers.0.mlp": 30}, "0 unknown or too wide, 1 missing"),
        ({"model.layers.0.mlp": 30, "model.layers.1.mlp": 41}, "1 unknown or too wide, 0 missing"),
        ({"model.layers.0.mlp": 30, "model.layers.1.mlp": 20, "extra": 1}, "1 unknown or too wide, 0 missing"),
        ({"model.layers.0.mlp": 0, "model.layers.1.mlp": 20}, "must map layer names to positive integers"),
        ({"model.layers.0.mlp": "30", "model.layers.1.mlp": 20}, "must map layer names to positive integers"),
        ([30, 20], "must map layer names to positive integers"),
    ],
)
def test_widths_that_do_not_fit_are_refused(saved: Path, widths: Any, message: str) -> None:
    edit_config(saved, llmrank_widths=widths)
    with pytest.raises(CheckpointError, match=message):
        load(saved)


def test_widths_that_fit_the_model_but_not_the_weights_are_refused(saved: Path) -> None:
    edit_config(saved, llmrank_widths={"model.layers.0.mlp": 20, "model.layers.1.mlp": 30})
    with pytest.raises(ModelSourceError, match=r"of another shape: model\.layers\.0.*\(16, 30\), not \(16, 20\)"):
        load(saved)


def test_damaged_checkpoints_are_refused(saved: Path) -> None:
    weights = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ModelSourceError, match="transformers cannot load"):
        load(saved)
    (saved / "model.safetensors").unlink()
    with pytest.raises(ModelSourceError, match="transformers cannot load"):
        load(saved)
    for content in ("[]", "5", "{", ""):
        (saved / "config.json").write_text(content)
        with pytest.raises(ModelSourceError, match="transformers cannot load"):
            load(saved)
    (saved / "config.json").unlink()
    with pytest.raises(ModelSourceError, match=r"has no config\.json"):
        load(saved)


def test_missing_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError, match="no model at"):
        load(tmp_path / "none")
    with pytest.raises(ModelSourceError, match="no GGUF file at"):
        load(tmp_path / "none.gguf")
    (tmp_path / "bad.gguf").write_bytes(b"not GGUF")
    with pytest.raises(ModelSourceError, match="transformers cannot load"):
        load(tmp_path / "bad.gguf")


def test_devices_and_dtypes_by_name() -> None:
    assert parse_device(None) == parse_device("cpu") == torch.device("cpu")
    assert parse_dtype(None) == parse_dtype("auto") == "auto"
    assert parse_dtype("bfloat16") is parse_dtype(torch.bfloat16) is torch.bfloat16
    for device in ("cuda:99", "gpu", "meta"):
        with pytest.raises(OptionError, match="expected 'cpu'"):
            parse_device(device)
    with pytest.raises(OptionError, match="unknown dtype 'int8'; expected auto, float32"):
        parse_dtype("int8")


def test_dense_checkpoints_load_the_same_either_way(tmp_path: Path) -> None:
    model = tiny_llama()
    save(tmp_path / "dense", model)
    assert "llmrank_widths" not in json.loads((tmp_path / "dense" / "config.json").read_text())
    for loaded in (load(tmp_path / "dense"), load_pretrained(tmp_path / "dense")):
        assert torch.equal(logits(loaded.model, IDS), logits(model, IDS))
        assert loaded.tokenizer is None
    assert llmrank.load is load


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_weights_of_a_checkpoint_stay_on_disk(tmp_path: Path) -> None:
    """Loaded in its own dtype on the CPU, a model's FFNs are views of the file: its graph takes no memory for edges."""
    llmrank.save(tmp_path / "model", tiny_llama(), tokenizer())
    ffns = find_ffns(llmrank.load(tmp_path / "model").model)
    regions = [
        tuple(int(end, 16) for end in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith("model.safetensors")
    ]
    for ffn in ffns:
        for stage in ffn.stages:
            for linear_map in stage:
                address = linear_map.weight.data_ptr()
                assert any(start <= address < stop for start, stop in regions), ffn.name


@pytest.mark.parametrize("error", [AssertionError(), MemoryError()])
def test_a_check_that_fails_without_a_message_fails_the_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(llmrank.surgery.checkpoint, "read_model", fail)
    with pytest.raises((CheckpointError, MemoryError)) as raised:
        save(tmp_path / "out", tiny_llama())
    assert isinstance(raised.value, MemoryError) or raised.value.__cause__ is error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["3", "[]", '{"config": 3}', '{"calibration": []}', "[" * 100_000])
def test_reports_that_are_not_written_so_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "report.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"cannot be read as a report of llmrank .*: restore it"):
        read_report(tmp_path / "report.json")


def test_a_report_that_makes_no_card_is_refused(tmp_path: Path) -> None:
    report = dict.fromkeys(("model", "method", "calibration", "neurons", "before", "after"), 3)
    with pytest.raises(OptionError, match=r"the report does not hold what llmrank writes"):
        save(tmp_path / "out", tiny_llama(), report=report)
    assert not (tmp_path / "out").exists()
