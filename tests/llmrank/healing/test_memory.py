"""Healing holds the models, the gradients and the state of the optimiser in memory, and little more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# Writes predictions and prints the bytes of the dense model, of the pruned one and of what learns; or prints the bytes by which
# loading and healing make the process larger.
SCRIPT = """
import sys
from pathlib import Path
import torch
from benchmarks.ranking import peak_growth
from llmrank.healing import DenseModel, Distillation, Predictions, heal_model, predict_tokens
from tests.llmrank.healing.test_heal import TOKENS
from transformers import LlamaConfig, LlamaForCausalLM

SETTINGS = Distillation(16 * 16, sequences_per_step=8, trainer={"bf16": False})

def model(width, layers=8):
    shape = dict(hidden_size=512, num_hidden_layers=layers, num_attention_heads=8, vocab_size=2048)
    return LlamaForCausalLM(LlamaConfig(intermediate_size=width, **shape)).eval()

def size(parameters):
    return 4 * sum(each.numel() for each in parameters)

def heal():
    pruned = model(1408)
    if way == "direct":
        heal_model(pruned, DenseModel(model(2048)), TOKENS, SETTINGS)
    else:
        teacher = Predictions.read(file)
        heal_model(pruned, teacher, teacher.tokens, SETTINGS)

torch.set_num_threads(1)
way, file = sys.argv[1], Path(sys.argv[2])
if way == "predict":
    dense, pruned = model(2048), model(1408)
    predict_tokens(dense, TOKENS).save(file)
    print(size(dense.parameters()), size(pruned.parameters()), size(pruned.model.layers.parameters()))
else:
    heal_model(model(64, 1), DenseModel(model(64, 1)), TOKENS, SETTINGS)  # what is imported and set up once
    print(peak_growth(heal))
"""


@pytest.mark.slow
def test_memory_is_that_of_the_formula(tmp_path: Path) -> None:
    def printed(way: str) -> list[str]:
        command = [sys.executable, "-c", SCRIPT, way, str(tmp_path / "predictions.safetensors")]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-3:]

    dense, pruned, learned = map(int, printed("predict"))
    found = [printed(way)[-1] for way in ("direct", "from a file")]
    if "None" in found:
        pytest.skip("the system does not tell the peak of a process")
    direct, cached = map(int, found)
    moments = 2 * learned
    allowance = 0.1 * dense  # activations and logits of a batch, and buffers
    assert dense + pruned + moments < direct < dense + pruned + learned + moments + allowance
    assert pruned + moments < cached < pruned + learned + moments + allowance
    assert direct < 2.5 * dense + moments + allowance
    assert cached < 1.5 * dense + moments + allowance
