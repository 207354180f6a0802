"""Checks that a model can be pruned. A check that fails raises an UnsupportedModelError that says what to do."""

from __future__ import annotations

from collections.abc import Container, Iterable

import torch
from torch import nn

from llmrank.errors import UnsupportedModelError
from llmrank.models.families import bias_attribute
from llmrank.models.ffn import FFN
from llmrank.models.linear_map import bias_of, is_linear_map

__all__ = [
    "check_biases",
    "check_experts_known",
    "check_not_quantised",
    "check_not_tied",
    "check_not_wrapped",
    "check_weights_finite",
]


def check_not_wrapped(model: nn.Module) -> None:
    """Raise an error if the model or a module in it is wrapped by an adapter of PEFT or compiled by torch.compile."""
    for path, module in model.named_modules():
        subject = f"{path} of {type(model).__name__}" if path else type(model).__name__
        if hasattr(module, "base_layer") and hasattr(module, "merge"):
            raise UnsupportedModelError(
                f"{subject} is wrapped by adapters ({type(module).__name__} around a {type(module.base_layer).__name__}, as in "
                "peft); expected the model's own linear maps: merge the adapters with model = model.merge_and_unload(), and "
                "prune the result"
            )
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise UnsupportedModelError(
                f"{subject} is compiled (torch.compile), and compiled code does not run the functions that repair substitutes "
                "for linear maps; expected a model that is not compiled: prune the model first (torch.compile(model) holds it "
                "as _orig_mod), and compile the pruned model"
            )


def check_weights_finite(model: nn.Module) -> None:
    """Raise an error if a parameter holds NaN or Inf. Cost: one read of the weights.

    8-bit floats and models with parameters on the meta device are not checked.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        return  # the model is being built or partly offloaded: the other parameters may hold no values yet
    for name, parameter in model.named_parameters():
        values = parameter.detach()
        # torch has no aminmax for 8-bit floats.
        if not values.is_floating_point() or values.dtype.itemsize < 2 or not values.numel():
            continue
        if not all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(values)):
            bad = (~torch.isfinite(values)).nonzero()
            raise UnsupportedModelError(
                f"{name} of {type(model).__name__} holds NaN or Inf in {len(bad)} of {values.numel()} places, first at "
                f"{bad[0].tolist()}; expected finite weights: fetch the model again, or load it in float32 or bfloat16 if "
                "float16 overflowed"
            )


def check_experts_known(model: nn.Module, mixtures: Container[str], linears: Iterable[nn.Module]) -> None:
    """Raise an error if the model stores experts in a module that is not known.

    A module is known if its path is one of `mixtures`, or if all its parameters belong to `linears`, the linear maps of the FFNs.
    """
    known = {id(parameter) for linear in linears for parameter in linear.parameters()}
    for path, module in model.named_modules():
        named = path.rsplit(".", 1)[-1] == "experts" or "experts" in type(module).__name__.lower()
        if named and path not in mixtures and not known.issuperset(map(id, module.parameters())):
            raise UnsupportedModelError(
                f"{type(model).__name__} is a mixture-of-experts model that stores its experts in a way that is not known "
                f"({path} is a {type(module).__name__}); expected tensors gate_up_proj or up_proj, and down_proj, with one "
                "matrix for each expert: choose another model, or name Linears outside the experts with structure_dict="
            )


def check_biases(model: nn.Module, ffns: Iterable[FFN]) -> None:
    """Raise an error if an output map has no bias, which a repair by bias needs, and cannot be given one."""
    configurable = bool(bias_attribute(model))
    for ffn in ffns:
        fixed = ffn.is_routed or ffn.heads is not None
        for output_map in (each for layer in ffn.prunable.values() for each in layer.output_maps):
            if bias_of(output_map.module) is None and (fixed or not configurable):
                reason = "experts and attentions be given one" if fixed else "the configuration give it one"
                raise UnsupportedModelError(
                    f"repair by bias needs output maps with a bias, and {output_map.name} has none, nor can {reason}; use repair "
                    "'lstsq', which changes their weights"
                )


def check_not_quantised(model: nn.Module, linears: dict[str, nn.Module]) -> None:
    """Raise an error if a linear map is of an unknown class, or if its weight is quantised or not an ordinary tensor."""
    for name, module in linears.items():
        weight: object = getattr(module, "qweight", None)
        packed = isinstance(weight, torch.Tensor)
        if not packed:
            weight = module.weight
        # The dtype alone does not tell: quantised and sharded weights are tensor subclasses that may report a float dtype.
        ordinary = is_linear_map(module) and type(weight) in (torch.Tensor, nn.Parameter)
        dtype = weight.dtype if isinstance(weight, torch.Tensor) else None
        if packed or not ordinary or dtype is None or not dtype.is_floating_point or dtype.itemsize < 2:
            raise UnsupportedModelError(
                f"{name} of {type(model).__name__} holds quantised or wrapped weights, or is no Linear of torch "
                f"({type(module).__name__}, {type(weight).__name__} of {dtype}), and cannot be pruned: load the model in "
                "float32, float16 or bfloat16 (dequantised, on one device), and quantise the pruned model"
            )


def check_not_tied(model: nn.Module, ffns: Iterable[FFN]) -> None:
    """Raise an error if a linear map of an FFN shares a parameter with any other module of the model."""
    ffn_maps = {id(p.owner) for ffn in ffns for stage in ffn.stages for p in stage}
    tied_on_loading = getattr(model, "all_tied_weights_keys", None) or {}
    first_owner: dict[int, str] = {}
    ffn_parameters: set[int] = set()
    for name, module in model.named_modules():
        for own_name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            key = id(parameter)
            if key in first_owner and (id(module) in ffn_maps or key in ffn_parameters):
                is_tied_again = f"{name}.{own_name}" in tied_on_loading
                advice = (
                    f"{type(model).__name__} ties them whenever it is loaded, so copies would be lost: choose another model, or "
                    "name Linears that are not tied with structure_dict="
                )
                raise UnsupportedModelError(
                    f"{first_owner[key]} and {name} share one parameter; pruning one would change the other: "
                    f"{advice if is_tied_again else 'untie them (copy the parameter) first'}"
                )
            first_owner.setdefault(key, name)
            if id(module) in ffn_maps:
                ffn_parameters.add(key)
