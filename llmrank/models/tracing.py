"""Trial runs: how a module calls its linear maps, and who else reads what they give.

Code that chains linear maps by hand says nothing by its shapes: which map comes after which, and whether a hidden layer
is read by the next map alone, shows when it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from llmrank.models.ffn import in_features, out_features

__all__ = ["linear_chain", "undisturbed"]

# Two neurons that change places escape notice once in 2 ** ROWS.
ROWS = 16


def linear_chain(module: nn.Module, linears: Mapping[str, nn.Module]) -> tuple[str, ...] | None:
    """The names of the linear maps in the order of the data, where the module is a plain chain of them.

    Each map must be called once, each hidden layer be read by the next map alone, through functions that act on every
    neuron by itself.

    Parameters
    ----------
    module : nn.Module
        Run on random features in evaluation mode, without gradients; left as it was.
    linears : mapping from str to nn.Module
        All its linear maps.

    Returns
    -------
    tuple of str, or None
        None where it is something else, or does not run on a (rows, features) tensor.

    Notes
    -----
    Cost: a forward pass of 16 rows, and four for each hidden layer.

    Examples
    --------
    >>> class Net(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.head, self.body = nn.Linear(5, 2), nn.Linear(3, 5)
    ...
    ...     def forward(self, x):
    ...         return self.head(torch.relu(self.body(x)))
    >>> net = Net()
    >>> linear_chain(net, {"head": net.head, "body": net.body})
    ('body', 'head')
    """
    weights = [parameter for linear in linears.values() for parameter in linear.parameters()]
    if len(linears) < 2 or any(weight.is_meta for weight in weights):
        return None
    # The map that is called first decides how many features there are; until it is known every width is tried.
    widths = dict.fromkeys(in_features(linear) for linear in linears.values())
    generator = torch.Generator().manual_seed(0)
    with undisturbed(module):
        for width in widths:
            probe = torch.randn(ROWS, width, generator=generator).to(weights[0])
            try:
                order = _order(module, linears, probe)
                if order is not None and all(_is_private(module, a, b, probe, generator) for a, b in pairwise(order)):
                    names = {id(linear): name for name, linear in linears.items()}
                    return tuple(names[id(linear)] for linear in order)
            except Exception:  # whatever a module says about an input that it did not expect
                continue
    return None


def _order(module: nn.Module, linears: Mapping[str, nn.Module], probe: torch.Tensor) -> list[nn.Module] | None:
    """The maps as they are called, or None where they are no chain by number and size."""
    called: list[nn.Module] = []
    with ExitStack() as hooks:
        for linear in linears.values():
            hooks.callback(linear.register_forward_pre_hook(lambda own, _inputs: called.append(own)).remove)
        module(probe)
    fits = all(out_features(a) == in_features(b) for a, b in pairwise(called))
    once = len(called) == len(linears) == len({id(linear) for linear in called})
    return called if once and fits and in_features(called[0]) == probe.shape[-1] else None


def _is_private(
    module: nn.Module, producer: nn.Module, consumer: nn.Module, probe: torch.Tensor, generator: torch.Generator
) -> bool:
    """Whether the consumer alone reads what the producer gives, and neuron by neuron."""
    shape = (ROWS, out_features(producer))
    one, other = (torch.randn(shape, generator=generator).to(probe) for _ in range(2))
    which = (torch.rand(shape, generator=generator) < 0.5).to(probe.device)
    read: list[torch.Tensor] = []

    def run(given: torch.Tensor, handed_on: torch.Tensor | None = None) -> Any:
        with ExitStack() as hooks:
            hooks.callback(producer.register_forward_hook(lambda *_: given).remove)
            hooks.callback(consumer.register_forward_pre_hook(_reader(read, handed_on)).remove)
            return module(probe)

    outputs = [run(one), run(other), run(torch.where(which, one, other))]
    # What the consumer reads is held; should the output still move, something else reads the hidden layer.
    outputs.append(run(other, read[0]))
    if any(not isinstance(output, torch.Tensor) for output in outputs) or any(r.shape != shape for r in read):
        return False
    by_neuron = torch.equal(read[2], torch.where(which, read[0], read[1]))
    return by_neuron and torch.equal(outputs[0], outputs[3])


def _reader(
    read: list[torch.Tensor], handed_on: torch.Tensor | None
) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...] | None]:
    def hook(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        read.append(inputs[0].detach())
        return None if handed_on is None else (handed_on, *inputs[1:])

    return hook


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; modes and the global random state come back afterwards.

    Parameters
    ----------
    module : nn.Module
        Of its parts every one gets its own mode back, whatever is raised.

    Examples
    --------
    >>> dropout, state = nn.Dropout(), torch.get_rng_state()
    >>> with undisturbed(dropout):
    ...     _ = torch.rand(1)
    ...     print(dropout.training)
    False
    >>> dropout.training, torch.equal(torch.get_rng_state(), state)
    (True, True)
    """
    modes: Sequence[tuple[nn.Module, bool]] = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for part, mode in modes:
            part.training = mode
