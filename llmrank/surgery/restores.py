"""Functions that restore what an application of masks may change, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeAlias

from torch import nn
from torch.nn.utils import prune as torch_prune

from llmrank.models import FFNs
from llmrank.models.experts import Expert, set_forward
from llmrank.models.families import WIDTH_ATTRIBUTES, text_config
from llmrank.models.stack import ShallowModel
from llmrank.surgery.widths import EXPERT_WIDTHS

__all__ = ["Restore", "restores_of"]

# A function that restores one module, or the configuration. It may be called again after an interrupt.
Restore: TypeAlias = Callable[[], None]
# Stands for the value of an attribute that an object does not have.
ABSENT = object()
# Attributes in which linear maps state their sizes.
SIZES = ("out_features", "in_features", "nf", "nx")


def restores_of(model: nn.Module, ffns: FFNs, shallow: ShallowModel | None = None) -> list[Restore]:
    """Return functions that restore the present state of everything that an application may change.

    `shallow` says which blocks it leaves out.
    """
    attributes: list[tuple[nn.Module, tuple[str, ...]]] = [
        (ffn.module, WIDTH_ATTRIBUTES) for ffn in ffns if not isinstance(ffn.module, Expert)
    ]
    attributes += [
        (module, tuple(name for name, value in vars(module).items() if type(value) is int or name == "config"))
        for attention in ffns.attentions
        for module in model.get_submodule(attention.name).modules()
    ]
    attributes += [(module, (name,)) for module, name, _ in (() if shallow is None else shallow.numbers)]
    for mixture in ffns.mixtures:
        attributes.append((mixture.experts.owner, EXPERT_WIDTHS))
        attributes += [(module, (name,)) for module, name in mixture.counts]
    restores = [_module_restore(module) for module in (*ffns.modules, *ffns.router_modules)]
    restores += [_attributes_restore(module, names) for module, names in attributes]
    routers = [mixture.router for mixture in ffns.mixtures]
    restores += [partial(set_forward, router, vars(router).get("forward")) for router in routers]
    entries: list[dict[str, Any]] = [mixture.experts.owner._modules for mixture in ffns.mixtures]
    entries += [] if shallow is None else [vars(shallow.stack)["_modules"]]
    config = text_config(model)
    if config is not None:
        entries.append(vars(config))
    return restores + [partial(_put_back, held, dict(held)) for held in entries]


def _put_back(held: dict[str, Any], before: Mapping[str, Any]) -> None:
    """Give a dictionary the entries that it had before, in their order, unless it has them."""
    if [(name, id(value)) for name, value in held.items()] != [(name, id(value)) for name, value in before.items()]:
        held.clear()
        held.update(before)


def _module_restore(module: nn.Module) -> Restore:
    parameters, buffers, hooks = dict(module._parameters), dict(module._buffers), dict(module._forward_pre_hooks)
    # The tensors are kept too, because an assignment to `data` gives the same Parameter another tensor.
    tensors = {name: parameter.data for name, parameter in parameters.items() if parameter is not None}
    restore_sizes = _attributes_restore(module, SIZES)

    def restore() -> None:
        target: Any = module
        for name, tensor in tensors.items():
            parameter: Any = parameters[name]
            if parameter.data_ptr() != tensor.data_ptr() or parameter.shape != tensor.shape:
                parameter.data = tensor
        for name in parameters:
            # torch.nn.utils.prune stores the masked tensor as a plain attribute.
            vars(target).pop(name, None)
            if f"{name}_mask" not in buffers:
                target._buffers.pop(f"{name}_mask", None)
        for key, hook in list(target._forward_pre_hooks.items()):
            if key not in hooks and isinstance(hook, torch_prune.BasePruningMethod):
                target._forward_pre_hooks.pop(key, None)
        target._buffers.update(
            {name: value for name, value in buffers.items() if target._buffers.get(name) is not value}
        )
        # The order of the parameters is restored too: optimisers and state dicts depend on it.
        _put_back(target._parameters, parameters)
        restore_sizes()

    return restore


def _attributes_restore(target: Any, names: Iterable[str]) -> Restore:
    before = {name: getattr(target, name, ABSENT) for name in names}

    def restore() -> None:
        for name, value in before.items():
            now = getattr(target, name, ABSENT)
            if now is not value and value is ABSENT:
                delattr(target, name)
            elif now is not value and now != value:
                setattr(target, name, value)

    return restore
