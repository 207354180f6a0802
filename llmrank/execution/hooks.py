"""Hooks that pass on the activations of linear maps, and the masks of padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import nn

from llmrank.errors import CalibrationError
from llmrank.models import FFN
from llmrank.models.forward import is_decoder

__all__ = ["TokenMasks", "add_hook", "rows_by_sequence", "unpadded_rows"]


@dataclass
class TokenMasks:
    """Masks of the current batch, False at padding; None if no token is padding.

    Attributes
    ----------
    input, decoder : (batch, length) bool tensor or None
        Mask of the model's input, and of the input of an encoder-decoder model's decoder (None in other models).
    """

    input: torch.Tensor | None = None
    decoder: torch.Tensor | None = None

    def replace(self, other: TokenMasks) -> None:
        """Set the masks to those of the next batch, in place, because hooks keep a reference to this object."""
        self.input, self.decoder = other.input, other.decoder


def unpadded_rows(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return the rows (tokens, n) of values (..., n) that are not padding; without a mask, all rows."""
    values = values.detach()
    if mask is not None:
        values = values[mask.to(values.device)]
    return values.reshape(-1, values.shape[-1])


def rows_by_sequence(
    *values: torch.Tensor, mask: torch.Tensor | None, shortest: int = 1
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield the rows of each sequence (see :func:`unpadded_rows`), so that sums over rows do not depend on the batch size.

    Parameters
    ----------
    *values : (batch, length, n) tensors
        Tensors with the same tokens. Rows of values (tokens, n), whose sequences cannot be told apart, are yielded together.
    mask : (batch, length) bool tensor or None
    shortest : int
        Sequences that are shorter than this are yielded together too.
    """
    if values[0].ndim != 3 or values[0].shape[1] < shortest:
        yield tuple(unpadded_rows(each, mask) for each in values)
        return
    for k in range(len(values[0])):
        yield tuple(unpadded_rows(each[k], None if mask is None else mask[k]) for each in values)


def add_hook(
    hooks: ExitStack,
    model: nn.Module,
    ffn: FFN,
    module: nn.Module,
    add: Callable[[torch.Tensor, torch.Tensor | None], None],
    masks: TokenMasks,
    *,
    output: bool = False,
) -> None:
    """Pass the input (or with `output` the output) of a linear map of an FFN to a function, until `hooks` closes.

    The function gets the values (..., n) of one batch, and a mask that is False at rows that do not count, None if all count.

    Raises
    ------
    CalibrationError
        In a forward pass: values do not fit the mask, so that padding cannot be told from text.
    """
    side = "decoder" if is_decoder(model, ffn) else "input"
    routing = ffn.routing_of(module)

    def pass_on(values: torch.Tensor) -> None:
        mask: torch.Tensor | None = getattr(masks, side)
        if mask is not None and routing is not None:  # an expert gets only some of the tokens
            mask, values = mask.reshape(-1)[routing.tokens.to(mask.device)], values.reshape(-1, values.shape[-1])
        if mask is not None and values.shape[:-1] != mask.shape:
            if values.shape[:-1] != (mask.numel(),):
                raise CalibrationError(
                    f"cannot tell padding from text: values at {ffn.name} have shape {tuple(values.shape)}, the tokens "
                    f"have shape {tuple(mask.shape)}; calibrate on one text (sequences without padding), not on a list of texts"
                )
            mask = mask.reshape(-1)
        add(values, mask)

    if output:
        handle = module.register_forward_hook(lambda _module, _inputs, result: pass_on(result))
    else:
        handle = module.register_forward_pre_hook(lambda _module, inputs: pass_on(inputs[0]))
    hooks.callback(handle.remove)
