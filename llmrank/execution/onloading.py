"""Let modules compute on a device for a while, although their weights stay in the memory of the CPU or in files.

The device gets copies of the weights, and afterwards the module gets its own tensors back. accelerate's ``align_module_device``
copies the weights back from the device instead, so weights that were in files would then be in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import torch
from torch import nn

from llmrank.models.forward import substitute_forward

__all__ = ["onloaded", "onloaded_by_block"]


@contextmanager
def onloaded(module: nn.Module, device: torch.device | None, without: Sequence[nn.Module] = ()) -> Iterator[None]:
    """Let copies on a device take the place of a module's parameters and buffers within the context.

    Afterwards the module holds its own tensors again, the same objects as before, also if an exception was raised. Some modules,
    such as rotary embeddings, replace a buffer within the context. Then the new buffer stays, on the device of the old buffer.

    Parameters
    ----------
    module : nn.Module
    device : torch.device or None
        None changes nothing.
    without : sequence of nn.Module
        Modules inside `module` that are left as they are.

    Notes
    -----
    Cost: one transfer of every tensor; tied tensors are copied once, and stay tied. Memory of the device: that of the copies.
    """
    left_out = {id(inner) for other in without for inner in other.modules()}
    copies: dict[int, torch.Tensor] = {}
    with ExitStack() as restore:
        for inner in () if device is None else module.modules():
            held: tuple[dict[str, Any], ...] = (inner._parameters, inner._buffers)
            for tensors in () if id(inner) in left_out else held:
                for name, own in tensors.items():
                    if own is None:
                        continue
                    if id(own) not in copies:
                        copy = own.detach().to(device)
                        is_parameter = isinstance(own, nn.Parameter)
                        copies[id(own)] = nn.Parameter(copy, requires_grad=False) if is_parameter else copy
                    restore.callback(_restore, tensors, name, own, copies[id(own)])
                    tensors[name] = copies[id(own)]
        yield


def _restore(tensors: dict[str, Any], name: str, own: torch.Tensor, copy: torch.Tensor) -> None:
    """Give a module its own tensor back in place of the copy, unless the module has replaced a buffer by a new one."""
    current = tensors.get(name)
    if current is None or current is copy or isinstance(own, nn.Parameter):
        tensors[name] = own
    else:
        tensors[name] = current.to(own.device)


@contextmanager
def onloaded_by_block(model: nn.Module, blocks: Sequence[nn.Module], device: torch.device | None) -> Iterator[None]:
    """Let forward passes of a complete model compute on a device within the context.

    Parameters
    ----------
    model : nn.Module
    blocks : sequence of nn.Module
        The transformer blocks of the model.
    device : torch.device or None
        None changes nothing.

    Notes
    -----
    Cost: each block is transferred once in every forward pass that runs it. The other modules (embeddings, norm, head) are
    transferred once in all. Memory of the device: one block and the other modules.
    """
    with ExitStack() as hooks:
        if device is not None:
            hooks.enter_context(onloaded(model, device, without=blocks))
            for block in blocks:
                substitute_forward(hooks, block, _onloading(block, device))
        yield


def _onloading(block: nn.Module, device: torch.device) -> Callable[..., Any]:
    """Return a forward function for a block that has copies of the block's weights on a device while the block computes."""
    forward = block.forward

    @wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        with onloaded(block, device):
            return forward(*args, **kwargs)

    return run
