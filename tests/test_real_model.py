"""The acceptance of the main job on a real LLM: what a user gets, checked from another process."""

from __future__ import annotations

import heapq
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from llmrank.evaluation.perplexity import perplexity
from llmrank.models import find_ffns
from llmrank.pipeline import CalibrationText
from llmrank.pipeline.pruning_run import PruningRun
from llmrank.pipeline.registry import make_recipe
from llmrank.prune import GlobalPruner, LocalPruner
from llmrank.surgery import checkpoint
from llmrank.surgery.apply import apply_masks
from llmrank.text import tokenise
from tests.llmrank.plain_pipelines import ChainedFFNPipeline

GGUF = os.environ.get("LLMRANK_REAL_MODEL", "")
WIKITEXT = os.environ.get("LLMRANK_WIKITEXT", "")
PROMPT = "The capital of France is Paris. It lies on the Seine, and its river banks are"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path(GGUF).is_file(), reason="LLMRANK_REAL_MODEL does not name the demo model's GGUF file"),
    # The GGUF reader of transformers copies read-only arrays; nothing of ours writes to them.
    pytest.mark.filterwarnings("ignore:The given NumPy array is not writable"),
]

STOCK = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
ids = tokenizer(sys.argv[2], return_tensors="pt")["input_ids"]
with torch.no_grad():
    logits = model(ids).logits[0]
generated = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)
assert "llmrank" not in sys.modules
print(json.dumps({"logits": logits.tolist(), "tokens": generated.shape[1] - ids.shape[1],
                  "ffn_bytes": sum(p.numel() * p.element_size() for n, p in model.named_parameters() if ".mlp." in n)}))
"""
OURS = STOCK.replace(
    "AutoModelForCausalLM.from_pretrained(sys.argv[1])", "__import__('llmrank').load(sys.argv[1]).model"
).replace('assert "llmrank" not in sys.modules', "")


def in_another_process(script: str, directory: Path) -> dict[str, Any]:
    outcome = subprocess.run(
        [sys.executable, "-c", script, str(directory), PROMPT], capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stderr
    result: dict[str, Any] = json.loads(outcome.stdout.strip().splitlines()[-1])
    return result


@pytest.fixture(scope="module")
def loaded() -> Any:
    return checkpoint.load(GGUF)


@pytest.mark.parametrize(("case", "script"), [("local", STOCK), ("global", OURS), ("global padded", STOCK)])
def test_checkpoint_computes_what_the_masked_model_does(loaded: Any, tmp_path: Path, case: str, script: str) -> None:
    model, tokenizer = loaded.model, loaded.tokenizer
    before = sum(p.numel() * p.element_size() for n, p in model.named_parameters() if ".mlp." in n)
    pipeline = ChainedFFNPipeline(
        model,
        tokenizer,
        pruner=LocalPruner(0.3, multiple_of=1) if case == "local" else GlobalPruner(0.3, multiple_of=1),
        calibration=CalibrationText(samples=4, sequence_length=128),
        form="padded" if case == "global padded" else "compact",
    )
    pipeline.run()
    saved = checkpoint.save(tmp_path / "pruned", model, tokenizer, pipeline.masks)
    pipeline.undo()
    assert pipeline.masks is not None

    found = in_another_process(script, saved)

    masked = apply_masks(model, find_ffns(model), pipeline.masks, "mask")
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = model(ids).logits[0]
    masked.undo()
    torch.testing.assert_close(torch.tensor(found["logits"]), expected, atol=1e-4, rtol=0)
    assert found["tokens"] == 5
    if case == "global padded":
        widest = max(pipeline.masks.widths.values())
        assert found["ffn_bytes"] == before * widest / 1536
    else:
        assert found["ffn_bytes"] == pytest.approx(before * 0.7, rel=1e-3)


def test_two_commands_of_a_user(tmp_path: Path) -> None:
    """Prune a .gguf file from the command line, then evaluate what it left on the same (built-in) text."""

    def llmrank(*arguments: object) -> None:
        command = [sys.executable, "-m", "llmrank", *map(str, arguments), "--sequence-length", "128"]
        outcome = subprocess.run(command, capture_output=True, text=True, check=False)
        assert outcome.returncode == 0, outcome.stderr

    options = ["--samples", 2, "--calibration", "built-in", "--scorer", "activation", "--repair", "none", "--evaluate"]
    llmrank("prune", GGUF, "--output", tmp_path / "out", *options)
    # --samples of prune are calibration sequences; both commands evaluate on as many as they do by default.
    llmrank("evaluate", tmp_path / "out", "--output", tmp_path / "again.json")
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    again = json.loads((tmp_path / "again.json").read_text(encoding="utf-8"))
    assert again["perplexity"] == pytest.approx(report["evaluation"]["after"]["value"], rel=1e-4)
    assert again["bytes"] == report["after"]["bytes"] < report["before"]["bytes"]


@pytest.mark.every_commit
@pytest.mark.skipif(
    not Path(WIKITEXT, "valid.txt").is_file(), reason="LLMRANK_WIKITEXT does not name WikiText-2's directory"
)
def test_default_reaches_its_perplexity(loaded: Any) -> None:
    """The default scorer at 30 %, calibrated on 8 sequences of valid, without a repair.

    The perplexity on the first 4 of test, and on Python code, is compared with that of the dense model. The limits are 2 % above
    what was measured.
    """

    def text(name: str) -> str:
        return Path(WIKITEXT, name).read_text(encoding="utf-8").replace("<unk>", "unk")

    model, tokenizer = loaded.model, loaded.tokenizer
    code = [Path(str(module.__file__)).read_text(encoding="utf-8") for module in (heapq, textwrap)]
    tests = [tokenise(given, tokenizer, 4, 512, "evaluation") for given in (text("test.txt"), code)]
    dense = [perplexity(model, test).value for test in tests]
    recipe = make_recipe(amount=0.3, repair="none", calibration=CalibrationText(text("valid.txt"), 8, 512))
    run = PruningRun(model, tokenizer, recipe)
    run.run()
    after = [perplexity(model, test).value for test in tests]
    run.undo()
    ratios = [pruned / whole for pruned, whole in zip(after, dense, strict=True)]
    assert 1.0 < ratios[0] <= 1.65
    assert 1.0 < ratios[1] <= 1.83
