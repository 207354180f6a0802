"""The model card of a checkpoint: metadata that hubs read, the license of the base model, and code that loads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

import llmrank
from llmrank.errors import CheckpointError
from llmrank.surgery import checkpoint
from tests.llmrank.tiny_models import family_model, named_family, text, tiny_llama, token_ids, tokenizer

OPTIONS: dict[str, Any] = {"repair": "none", "calibration": token_ids(4, 16)}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model with a license, as fetched from a hub."""
    llmrank.save(tmp_path / "Tiny-Llama", tiny_llama(), tokenizer())
    card = "---\nlicense: other\nlicense_name: tiny\nlicense_link: https://example.com/terms\n---\n# Tiny\n"
    (tmp_path / "Tiny-Llama" / "README.md").write_text(card)
    (tmp_path / "Tiny-Llama" / "LICENSE.md").write_text("Terms.")
    return tmp_path / "Tiny-Llama"


def test_the_license_of_the_base_model_is_kept(source: Path, tmp_path: Path) -> None:
    loaded = llmrank.load(source)
    evaluation = tmp_path / "text.txt"
    evaluation.write_text(text(2000, 1))
    pruned = llmrank.prune_model(loaded.model, loaded.tokenizer, 0.25, evaluation=evaluation, **OPTIONS)
    pruned.save(tmp_path / "pruned")
    card = ModelCard.load(tmp_path / "pruned" / "README.md")
    found = card.data.to_dict()
    assert (found["license"], found["license_name"], found["license_link"]) == (
        "other",
        "tiny",
        "https://example.com/terms",
    )
    assert "pruned" in found["tags"]
    assert "base_model" not in found  # a path is no name on a hub
    assert (tmp_path / "pruned" / "LICENSE.md").read_text() == "Terms."
    assert "# Tiny-Llama, 25.0% of the hidden neurons removed" in card.text
    assert "| hidden neurons | 80 | 60 | -25.0% |" in card.text
    assert re.search(r"\| perplexity on [^|]+ \| [\d,.]+ \| [\d,.]+ \| [+-][\d,.]+% \|", card.text)
    assert str(tmp_path) not in str(card.content)


def test_the_base_model_is_named_if_it_is_on_a_hub(tmp_path: Path) -> None:
    model = tiny_llama()
    model.name_or_path = "someone/Tiny-Llama"
    llmrank.prune_model(model, None, 0.25, **OPTIONS).save(tmp_path / "pruned")
    assert ModelCard.load(tmp_path / "pruned" / "README.md").data.base_model == "someone/Tiny-Llama"


def test_a_name_of_a_directory_is_no_html(tmp_path: Path) -> None:
    model = tiny_llama()
    model.name_or_path = "./<img src=x onerror=alert(1)>"
    llmrank.prune_model(model, None, 0.25, **OPTIONS).save(tmp_path / "pruned")
    card = ModelCard.load(tmp_path / "pruned" / "README.md").text
    assert "<img" not in card
    assert "# &lt;img src=x" in card


@pytest.mark.parametrize(("family", "stock"), [("Llama, SmolLM2", True), ("BLOOM", False)])
def test_its_code_loads_the_checkpoint(family: str, stock: bool, tmp_path: Path) -> None:
    model = family_model(named_family(family))
    llmrank.prune_model(model, None, 0.25, **OPTIONS).save(tmp_path / "pruned")
    content = (tmp_path / "pruned" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", content, re.DOTALL)
    assert ("import transformers" in code) == stock
    names: dict[str, Any] = {}
    exec(code.replace("PATH", str(tmp_path / "pruned")), names)
    assert isinstance(names["model"], transformers.PreTrainedModel)


def test_generation_settings_chat_template_and_dtype_are_kept(tmp_path: Path) -> None:
    model, words = tiny_llama().to(torch.bfloat16), tokenizer()
    model.generation_config.repetition_penalty = 1.25
    words.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    llmrank.save(tmp_path / "dense", model, words)
    loaded = llmrank.load(tmp_path / "dense")
    pruned = llmrank.prune_model(loaded.model, loaded.tokenizer, 0.25, **OPTIONS)
    again = llmrank.load(pruned.save(tmp_path / "pruned"))
    assert again.model.dtype == torch.bfloat16
    assert again.model.generation_config.repetition_penalty == 1.25
    assert again.tokenizer.chat_template == words.chat_template


def test_a_checkpoint_with_other_values_than_the_model_is_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_llama()
    honest = type(model).save_pretrained

    def save_pretrained(self: Any, directory: Path, **options: Any) -> None:
        honest(self, directory, **options)
        state = load_file(directory / "model.safetensors")
        state["model.layers.1.mlp.up_proj.weight"] *= 2.0
        save_file(state, directory / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(type(model), "save_pretrained", save_pretrained)
    with pytest.raises(CheckpointError, match=r"other values after loading: model\.layers\.1\.mlp\.up_proj\.weight"):
        checkpoint.save(tmp_path / "out", model)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("card", ["---\nlicense: [\n---\n", "no metadata"])
def test_a_damaged_card_of_the_base_model_says_nothing(source: Path, tmp_path: Path, card: str) -> None:
    (source / "README.md").write_text(card)
    loaded = llmrank.load(source)
    llmrank.prune_model(loaded.model, loaded.tokenizer, 0.25, **OPTIONS).save(tmp_path / "pruned")
    assert "license" not in ModelCard.load(tmp_path / "pruned" / "README.md").data.to_dict()
