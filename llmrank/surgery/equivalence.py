"""The last check of a compact model: it must compute what the masked model computes.

Detection by shapes can mistake something else for an FFN, or miss that neurons are coupled. Two short forward passes, of the
masked and of the compact model, show such errors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from llmrank.errors import UnsupportedModelError, is_out_of_memory
from llmrank.models import FFNs, PrunableLayer
from llmrank.models.experts import Mixture, by_expert, find_mixtures, route_around
from llmrank.models.forward import evaluation_mode, first_output, model_inputs, run_body
from llmrank.prune.masks import Masks
from llmrank.repair import RepairedMap, substitute
from llmrank.text import TokenSequences

__all__ = ["as_masked", "check_equivalence", "masked_outputs", "silence_layers"]

# A few tokens are enough, because every neuron takes part in the output for each token.
N_SEQUENCES, N_TOKENS = 2, 32
# Allowed difference of the outputs, as a share of the largest one: sums are computed in another order, so they round differently.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
# For all other dtypes.
COARSE_TOLERANCE = 5e-2


def masked_outputs(
    model: nn.Module,
    ffns: FFNs,
    masks: Masks,
    sequences: TokenSequences,
    repaired: Mapping[str, RepairedMap] | None = None,
) -> torch.Tensor:
    """Compute the outputs of a masked and repaired model without changing its weights.

    Parameters
    ----------
    model : nn.Module
        Not changed.
    ffns : FFNs
        FFNs that were found (not explicit ones).
    masks : Masks
    sequences : TokenSequences
        Only the first 2 sequences are used, and of sequences of token ids only the first 32 ids. Sequences of features are not
        cut.
    repaired : mapping from str to RepairedMap, optional
        Repaired output maps.

    Returns
    -------
    tensor
        The model's first output, float64 on the CPU.
    """
    with as_masked(ffns, masks, repaired):
        return _outputs(model, sequences)


@contextmanager
def as_masked(ffns: FFNs, masks: Masks, repaired: Mapping[str, RepairedMap] | None = None) -> Iterator[None]:
    """Let a model compute, within the context, what its compact form will compute; its weights are not written.

    Mixtures compute expert by expert, because hooks on fused experts would not be called.
    """
    with by_expert(ffns.mixtures), ExitStack() as hooks:
        silence_layers(hooks, ffns.layers.values(), masks)
        for name, output_map in ffns.output_maps.items():
            if repaired and name in repaired:
                substitute(hooks, output_map.module, repaired[name])
        yield


def check_equivalence(model: nn.Module, expected: torch.Tensor, sequences: TokenSequences) -> None:
    """Raise unless the compact model gives the expected outputs, up to rounding.

    Parameters
    ----------
    model : nn.Module
        The compact model.
    expected : tensor
        What :func:`masked_outputs` returned for the same sequences.
    sequences : TokenSequences

    Raises
    ------
    UnsupportedModelError
        The outputs differ, or the model does not run.
    """
    advice = (
        f"{type(model).__name__} has parts with the shapes of an FFN or an attention that do not behave like one (neurons "
        "or heads that are coupled, or read elsewhere), so it cannot be pruned by them; name Linears with structure_dict= instead"
    )
    try:
        mixtures = find_mixtures(model).values()
        if mixtures:
            advice += (
                ". If a router has ties (equal scores for several experts, such as a router of zeros), rounding chooses the "
                "experts, and no comparison is possible: train or load its weights first"
            )
        # The expected outputs were computed expert by expert, so these are too. Otherwise they would round differently, and a
        # router could choose another expert for a token where the scores of two experts are nearly equal.
        with by_expert(mixtures):
            outputs = _outputs(model, sequences)
        if mixtures:
            _outputs(model, sequences)  # raises if the model fails with its own code for experts
    except Exception as error:  # whatever a module raises for shapes it did not expect
        if is_out_of_memory(error):
            raise
        raise UnsupportedModelError(f"the compact model does not run ({error}): {advice}") from error
    scale = float(expected.abs().max()) or 1.0
    difference = float((outputs - expected).abs().max()) / scale if outputs.shape == expected.shape else float("inf")
    if not difference <= TOLERANCE.get(next(model.parameters()).dtype, COARSE_TOLERANCE):
        raise UnsupportedModelError(
            f"the compact model does not compute what the masked model does (outputs differ by {difference:.1e} of "
            f"their largest): {advice}"
        )


def silence_layers(hooks: ExitStack, layers: Iterable[PrunableLayer], masks: Masks) -> None:
    """Let removed neurons of layers count as zero, and routers choose among the experts that are kept, until `hooks` closes.

    A block is left out if none of these layers in it keeps a neuron; give all of its layers then.
    """
    experts: dict[Mixture, list[bool]] = {}
    layers = list(layers)
    left_out = masks.left_out(layers)
    for block in left_out:
        block.leave_out(hooks)
    for layer in layers:
        if layer.block in left_out:
            continue
        keep = masks[layer.name]
        for output_map in layer.output_maps:
            hook = _zeroing_hook(keep)
            # The removal is registered before the hook is, and twice, in case an interrupt comes during the first removal.
            for _ in range(2):
                hooks.callback(_remove_hook, output_map.module, hook)
            output_map.module.register_forward_pre_hook(hook)
        if layer.mixture is not None:
            experts.setdefault(layer.mixture, []).append(bool(keep.any()))
    for mixture, kept in experts.items():
        if not all(kept):
            route_around(mixture, torch.tensor(kept), hooks)


def _remove_hook(module: nn.Module, hook: Any) -> None:
    for key in [key for key, value in module._forward_pre_hooks.items() if value is hook]:
        module._forward_pre_hooks.pop(key, None)


def _zeroing_hook(keep: torch.Tensor) -> Any:
    def hook(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        nonlocal keep
        keep = keep.to(inputs[0].device)  # copied the first time only
        return (torch.where(keep, inputs[0], torch.zeros_like(inputs[0])), *inputs[1:])

    return hook


@torch.no_grad()
def _outputs(model: nn.Module, sequences: TokenSequences) -> torch.Tensor:
    ids, mask = sequences.ids[:N_SEQUENCES], sequences.mask[:N_SEQUENCES]
    if not ids.is_floating_point():
        ids, mask = ids[:, :N_TOKENS], mask[:, :N_TOKENS]
    inputs, _, _ = model_inputs(model, ids, mask)
    with evaluation_mode(model):
        output: torch.Tensor = first_output(run_body(model, inputs))
    return output.detach().cpu().double()
