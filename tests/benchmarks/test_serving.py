"""What is said of served files: greedy tokens, common beginnings, replaced types, stock checkpoints. llama.cpp is not needed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from benchmarks import serving
from benchmarks.llama_cpp_runs import CONVERTER, LlamaCpp, replaced_types, tensor_types
from benchmarks.serving import common, compared, continued, loss, named_checkpoints, reference
from benchmarks.serving_table import table
from benchmarks.stock import read_stock
from llmrank import prune_model
from llmrank.surgery import checkpoint
from llmrank.surgery.widths import WIDTHS_KEY
from tests.llmrank.tiny_models import LLAMA, tiny_llama, token_ids, whole_sequences


class Fake:
    """A file that says what a model of transformers says."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def logits(self, ids: list[int]) -> Any:
        with torch.no_grad():
            return self.model(input_ids=torch.tensor([ids])).logits[0].numpy()

    def write(self, prompt: list[int], count: int) -> list[int]:
        return continued(self.model, torch.tensor([prompt]), count)[0][0]


def test_a_continuation_reads_its_own_tokens_and_does_not_end() -> None:
    model, prompts = tiny_llama(), token_ids(3, 5)
    tokens, gaps = continued(model, prompts, 4)
    for prompt, written, gap in zip(prompts, tokens, gaps, strict=True):
        ids = prompt
        for token, step in zip(written, gap, strict=True):
            with torch.no_grad():
                best = model(input_ids=ids[None]).logits[0, -1].topk(2)
            assert token == int(best.indices[0])
            assert step == pytest.approx(float(best.values[0] - best.values[1]), abs=1e-5)
            ids = torch.cat([ids, torch.tensor([token])])


def test_what_counts_is_the_common_beginning() -> None:
    found = common([[1, 2, 3], [4, 5, 6]], [[1, 2, 3], [4, 0, 6]], [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
    assert found == {"equal": 1, "common_tokens": 4, "tokens": 6, "common": [3, 1], "gaps": [0.5]}


def test_a_file_is_compared_with_its_own_checkpoint() -> None:
    model, text = tiny_llama(), whole_sequences(token_ids(3, 12))
    said = reference(model, text, text.ids[:2, :5], 4)
    losses = [float(model(input_ids=ids[None], labels=ids[None]).loss.detach()) for ids in text.ids]
    assert said.perplexity == pytest.approx(float(torch.tensor(losses).mean().exp()), rel=1e-5)
    same = compared(Fake(model), said, text, text.ids[:2, :5])  # type: ignore[arg-type]
    assert (same["same_likeliest"], same["greedy"]["equal"]) == (1.0, 2)
    assert same["largest_logit_difference"] == pytest.approx(0.0, abs=1e-5)
    other = compared(Fake(tiny_llama(seed=1)), said, text, text.ids[:2, :5])  # type: ignore[arg-type]
    assert other["same_likeliest"] < 0.5
    assert other["largest_logit_difference"] > 0.1
    assert loss(Fake(model).logits(text.ids[0].tolist()), text.ids[0]) == pytest.approx(losses[0], rel=1e-5)


def test_replaced_types_are_read_from_the_log() -> None:
    log = (
        "warning: blk.0.ffn_up.weight - ncols    576 not divisible by 256 (required for type  q4_K) -> falling back to    q5_0\n"
        "warning: blk.1.ffn_up.weight - ncols    576 not divisible by 256 (required for type  q4_K) -> falling back to    q5_0\n"
        "warning: blk.0.ffn_down.weight - ncols   1075 not divisible by  32 (required for type    q8_0) "
        "(WARNING: must use F16 due to unusual shape) -> falling back to     f16\n"
    )
    assert replaced_types(log) == {"q4_K to q5_0, rows of 576": 2, "q8_0 to f16, rows of 1075": 1}
    assert replaced_types("") == {}


def test_types_are_counted_by_part(tmp_path: Path) -> None:
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    for layer in range(2):
        writer.add_tensor(f"blk.{layer}.ffn_down.weight", np.ones((4, 32), np.float16 if layer else np.float32))
    writer.add_tensor("output_norm.weight", np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert tensor_types(tmp_path / "a.gguf") == {"ffn_down": {"F32": 1, "F16": 1}}


def pruned_to(directory: Path) -> Path:
    pruned = prune_model(tiny_llama(), amount=0.3, repair="none", calibration=token_ids(4, 16))
    return pruned.save(directory)


def test_a_checkpoint_of_one_width_is_stock(tmp_path: Path) -> None:
    stock = read_stock(pruned_to(tmp_path / "a"))
    assert (stock.architecture, stock.width, stock.problems) == ("LlamaForCausalLM", 28, [])
    assert stock.parallel == [1, 2, 4]  # 4 heads; two heads of keys and values are repeated
    dense = checkpoint.save(tmp_path / "dense", tiny_llama())
    assert list(named_checkpoints(dense, [tmp_path / "a"])) == ["dense", "width 28"]


def test_what_a_stock_server_would_not_load_is_said(tmp_path: Path) -> None:
    path = pruned_to(tmp_path / "a")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, WIDTHS_KEY: {"model.layers.0.mlp": 27}}))
    assert "different widths" in read_stock(path).problems[0]
    (path / "config.json").write_text(
        json.dumps({**config, "intermediate_size": 40, "auto_map": {}, "hidden_act": "gelu"})
    )
    problems = read_stock(path).problems
    assert len(problems) == 2 + 2 * 3
    assert any("28 hidden neurons where config.json states 40" in problem for problem in problems)
    (path / "config.json").write_text(json.dumps({**config, "architectures": ["Other"]}))
    with pytest.raises(SystemExit, match="Other"):
        read_stock(path)


def test_experts_have_one_width(tmp_path: Path) -> None:
    settings = {
        **LLAMA,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "norm_topk_prob": True,
    }
    model = transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**settings))
    model.save_pretrained(tmp_path)
    stock = read_stock(tmp_path)
    assert (stock.architecture, stock.width, stock.experts, stock.problems) == ("Qwen3MoeForCausalLM", 24, 4, [])
    tensors = load_file(tmp_path / "model.safetensors")
    name = next(name for name in tensors if name.endswith("experts.1.down_proj.weight"))
    save_file({**tensors, name: tensors[name][:, :16].contiguous()}, tmp_path / "model.safetensors", {"format": "pt"})
    assert read_stock(tmp_path).problems == [f"{name} has 16 hidden neurons where config.json states 24"]


def test_without_llama_cpp_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(SystemExit, match=r"llama-cpp-python.*pip install"):
        serving.main([])
    monkeypatch.setitem(sys.modules, "llama_cpp", type(sys)("llama_cpp"))
    with pytest.raises(SystemExit, match=rf"{CONVERTER}.*pip download"):
        LlamaCpp(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        serving.main(["--dense", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        serving.main(["--uneven", "--dense", str(tmp_path), "--compact", str(tmp_path)])


def test_the_table_shows_every_file(tmp_path: Path) -> None:
    speed = {"tokens_per_second": 10.0, "speedup": 1.2, "quartiles": [1.1, 1.3]}
    file = {
        "bytes": 1000,
        "types": {"ffn_down": {"F16": 2}, "ffn_up": {"Q8_0": 2}},
        "replaced": {"q8_0 to f16, rows of 1075": 2},
        "same_likeliest": 0.5,
        "perplexity": 3.0,
        "greedy": common([[1, 2]], [[1, 3]], [[0.5, 0.25]]),
        "speed": {"read": speed, "write": speed},
    }
    stock = {"architecture": "A", "width": 7, "experts": 0, "parallel": [1], "problems": []}
    row = {"stock": stock, "perplexity": 2.0, "files": {"f16": file, "q8_0": file}}
    results = {
        "provenance": {"cpu": "a", "cores": 1, "transformers": "5"},
        "protocol": {
            "model": "tiny",
            "llama.cpp": {"llama-cpp-python": "0"},
            "note": "",
            "sizes": serving.asdict(serving.Sizes()),
        },
        "rows": [{**row, "label": "dense"}, {**row, "label": "width 7"}],
    }
    shown = table(results)
    assert shown.count("| 0 of 1 | 1 of 2 | 0.250, 0.250 | 3.000 | 2.000 |") == 4
    assert shown.count("| 100.0% | 10 | 1.20 (1.10 to 1.30) |") == 4
    assert shown.count("| width 7 | q8_0 | 2 F16 | 2 q8_0 to f16, rows of 1075 |") == 1
