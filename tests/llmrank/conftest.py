"""Fixtures of the tests that run models."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers

import llmrank
from llmrank.models.finding import detect
from llmrank.text import generated
from tests.devices import DeviceTraffic
from tests.llmrank.tiny_models import text, tiny_llama, tokenizer


@pytest.fixture(autouse=True, scope="module")
def one_quiet_thread() -> Iterator[None]:
    """Models this small gain nothing from threads, and lose much where the cores are shared."""
    threads, bars = torch.get_num_threads(), transformers.utils.logging.is_progress_bar_enabled()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    yield
    torch.set_num_threads(threads)
    if bars:
        transformers.utils.logging.enable_progress_bar()


@pytest.fixture(autouse=True)
def no_kept_texts(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test begins without texts that models wrote in others, and leaves none in the user's cache."""
    monkeypatch.setattr(generated, "cache_directory", lambda: tmp_path_factory.mktemp("cache"))


@pytest.fixture
def transformers_log_as_it_was() -> Iterator[None]:
    level = logging.getLogger("transformers").level
    yield
    logging.getLogger("transformers").setLevel(level)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    return llmrank.save(directory, tiny_llama(), tokenizer())


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text(text(200), encoding="utf-8")
    return path


@pytest.fixture
def two_devices(monkeypatch: pytest.MonkeyPatch, device_traffic: DeviceTraffic) -> DeviceTraffic:
    """The simulated devices, for models."""
    # Tensors of these devices are a subclass, which a search for quantised weights takes for one.
    monkeypatch.setattr(detect, "check_not_quantised", lambda *_: None)
    return device_traffic
