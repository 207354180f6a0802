"""The norms between a neuron and the logits: the norm in front of the head and, in some models, a norm behind each FFN."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from llmrank.errors import UnsupportedModelError
from llmrank.evaluation.logits import check_predicts
from llmrank.models import FFN, FFNs
from llmrank.models.forward import TRIAL_TOKENS, evaluation_mode, model_inputs

__all__ = ["Norm", "Norms", "find_norms", "read_norm"]

# The outputs of a module and of the Norm that describes it may differ by this many rounding errors of the module's dtype.
ROUNDINGS = 16
# A module, its input and its output.
Call: TypeAlias = tuple[nn.Module, torch.Tensor, torch.Tensor]


@dataclass(frozen=True, eq=False)
class Norm:
    """A layer norm or an RMS norm.

    Attributes
    ----------
    gain : (n,) float32 tensor
        The factor of every feature.
    centred : bool
        Whether the mean of the features is subtracted, as a layer norm does.
    """

    gain: torch.Tensor
    centred: bool

    def apply(self, directions: torch.Tensor) -> torch.Tensor:
        """Return in which direction the output changes when the input changes a little in these directions, (..., n).

        The result is the derivative without its common factor, which depends on the input.
        """
        return (directions - directions.mean(-1, keepdim=True) if self.centred else directions) * self.gain


@dataclass(frozen=True, eq=False)
class Norms:
    """The norms of a model.

    Attributes
    ----------
    final : Norm
        The norm in front of the head.
    behind : dict from str to Norm
        The norm that the output of an FFN passes before it is added to the residual stream, by the name of the FFN; few models
        have it (Gemma, OLMo 2).
    """

    final: Norm
    behind: dict[str, Norm]


@torch.no_grad()
def read_norm(module: nn.Module, like: torch.Tensor) -> Norm | None:
    """Read the gain of a norm from its outputs, whatever its class and the names of its parameters.

    Parameters
    ----------
    module : nn.Module
    like : (..., n) tensor
        A tensor of the device, the dtype and the number of features that the module takes.

    Returns
    -------
    Norm or None
        None if the module is no norm. A norm leaves a vector of mean 0 and mean square 1 as it is, except for a gain and a shift
        of each feature, and its output does not depend on the scale of the vector.

    Examples
    --------
    >>> norm = read_norm(nn.LayerNorm(4), torch.zeros(4))
    >>> norm.gain.round(decimals=3).tolist(), norm.centred
    ([1.0, 1.0, 1.0, 1.0], True)
    >>> read_norm(nn.Linear(4, 4), torch.zeros(4)) is None
    True
    """
    # Both vectors have mean 0 and mean square 1. The probe has no small entries, because outputs are divided by them.
    n = like.shape[-1]
    probe = torch.ones(n)
    probe[1::2] = -1.0
    if n % 2 and n > 1:
        probe[-3:] = torch.tensor([1.0, 1.0, -2.0]) * 0.5**0.5
    other = torch.randn(n, generator=torch.Generator().manual_seed(0))
    other = (other - other.mean()) / other.std(correction=0)

    def run(vector: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = module(vector.to(like).view(1, 1, n))
        return output.float().cpu().view(n)

    try:
        of_probe, of_opposite = run(probe), run(-probe)
        outputs, scaled, moved = run(other), run(4 * other), run(other + 4.0)
    except Exception:  # a module may raise any error for an input that it does not expect
        return None
    gain, shift = (of_probe - of_opposite) / (2 * probe), (of_probe + of_opposite) / 2
    expected = gain * other.to(like).float().cpu() + shift
    tolerance = max(ROUNDINGS * torch.finfo(like.dtype).eps, 1e-4) * float(expected.abs().max())
    if not all(torch.allclose(each, expected, rtol=0.0, atol=tolerance) for each in (outputs, scaled)):
        return None
    # Only a norm that subtracts the mean gives the same output for the moved vector.
    return Norm(gain, torch.allclose(moved, outputs, rtol=0.0, atol=tolerance))


@torch.no_grad()
def find_norms(model: Any, ffns: FFNs) -> Norms:
    """Find the norms between the FFNs and the logits, by a forward pass of eight tokens.

    Raises
    ------
    UnsupportedModelError
        The model predicts no next token, or something else than a norm leads to its head.
    """
    check_predicts(model, "logit lens")
    head: Any = model.get_output_embeddings()
    if head is None or getattr(head, "weight", None) is None or head.weight.is_meta:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no logit lens: its head is no matrix in memory; load the model without offloading"
        )
    calls, head_input, outputs = _trial(model, head, ffns)
    final = None
    for module, _, output in reversed(calls):
        if head_input is not None and output.shape == head_input.shape:
            # T5 scales the output of its norm before the head reads it, so only the directions must agree.
            aligned = torch.cosine_similarity(output.flatten().float(), head_input.flatten().float(), dim=0) > 0.999
            final = read_norm(module, output) if aligned else None
            break
    if final is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no logit lens: its head does not read a layer norm or an RMS norm"
        )
    behind = {}
    for name, written in outputs.items():
        for module, before, output in calls:
            norm = read_norm(module, output) if _share_memory(before, written) else None
            if norm is not None:
                behind[name] = norm
    return Norms(final, behind)


def _trial(model: Any, head: nn.Module, ffns: FFNs) -> tuple[list[Call], torch.Tensor | None, dict[str, torch.Tensor]]:
    """Run a few tokens; return the calls of modules without children, the input of the head, and the output of each FFN."""
    calls: list[Call] = []
    head_inputs: list[torch.Tensor] = []
    outputs: dict[str, torch.Tensor] = {}

    def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if (
            args
            and isinstance(output, torch.Tensor)
            and isinstance(args[0], torch.Tensor)
            and not _share_memory(args[0], output)
        ):
            calls.append((module, args[0], output))

    body = {id(module) for module in model.base_model.modules()}
    with ExitStack() as hooks, evaluation_mode(model, ffns):
        for module in model.modules():
            if next(module.children(), None) is None and id(module) in body:
                hooks.callback(module.register_forward_hook(note).remove)
        hooks.callback(head.register_forward_pre_hook(lambda _, args: head_inputs.append(args[0])).remove)
        for ffn in ffns:
            hooks.callback(_writer(ffn).register_forward_hook(_output_hook(outputs, ffn.name)).remove)
        ids = torch.arange(TRIAL_TOKENS)[None]
        model(**model_inputs(model, ids, torch.ones_like(ids, dtype=torch.bool), text_only=True)[0])
    return calls, head_inputs[-1] if head_inputs else None, outputs


def _writer(ffn: FFN) -> nn.Module:
    """Return the module whose output goes to the residual stream: the output map, or the mixture of all experts."""
    return ffn.stages[-1][0].module if ffn.mixture is None else ffn.mixture.module


def _output_hook(outputs: dict[str, torch.Tensor], name: str) -> Any:
    """Return a hook that stores the output of a module in `outputs` under a name."""

    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        outputs[name] = output if isinstance(output, torch.Tensor) else output[0]

    return hook


def _share_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors share their memory. Dropout in evaluation mode, for example, returns its input itself."""
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape
