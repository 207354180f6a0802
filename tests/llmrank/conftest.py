"""Fixtures of the tests that run models."""

from collections.abc import Iterator

import pytest
import torch
import transformers


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
