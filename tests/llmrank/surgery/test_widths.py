"""Which fields of a configuration state the widths of a compact model."""

from __future__ import annotations

import pytest
import torch

from benchmarks.tiny_configs import tiny_model
from llmrank.models import find_ffns
from llmrank.prune.masks import Masks
from llmrank.surgery.widths import compact_widths


@pytest.mark.parametrize(
    ("model_type", "field"),
    [("recurrent_gemma", "intermediate_size"), ("moshi", "ffn_dim"), ("llama", "intermediate_size")],
)
def test_a_field_may_hold_a_multiple_of_the_width(model_type: str, field: str) -> None:
    model = tiny_model(model_type)
    ffns, stated = find_ffns(model), getattr(model.config, field)
    masks = Masks({name: torch.arange(size) < size - 5 for name, size in ffns.sizes.items()})
    (width,) = set(ffns.sizes.values())
    held, fields = compact_widths(model, ffns, masks)
    assert held == masks
    assert fields == {field: stated - 5 * stated // width}
    assert (stated == 2 * width) == (model_type != "llama")
