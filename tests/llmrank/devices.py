"""Models that are spread over the simulated devices."""

from typing import Any

from accelerate import dispatch_model

from tests.devices import FIRST, SECOND


def on_two(model: Any) -> Any:
    """Spread a model of two blocks over both devices with accelerate: the embeddings and the first block, and the rest."""
    parts = {"model.embed_tokens": FIRST, "model.rotary_emb": FIRST, "model.layers.0": FIRST}
    rest = dict.fromkeys(("model.layers.1", "model.norm", "lm_head"), SECOND)
    return dispatch_model(model, {**parts, **rest}, main_device=FIRST)
