"""Trial runs of a module: in which order it calls its linear maps, and whether other code reads their outputs.

If code chains linear maps by hand, their shapes do not tell which map follows which, nor whether a hidden layer is read by
the next map alone. A run of the module does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from llmrank.models.linear_map import in_features, out_features

__all__ = ["linear_chain", "trial_run"]

# A run that swaps two neurons goes unnoticed with a probability of 2 ** -ROWS.
ROWS = 16


def linear_chain(module: nn.Module, linears: Mapping[str, nn.Module]) -> tuple[str, ...] | None:
    """Return the names of a module's linear maps in the order of the data, if the module is a plain chain of them.

    In a plain chain each map is called once, and each hidden layer is read by the next map alone, through functions that act on
    every neuron by itself.

    Parameters
    ----------
    module : nn.Module
        It runs on random features in evaluation mode, without gradients, and is left unchanged.
    linears : mapping from str to nn.Module
        All linear maps of the module, by name.

    Returns
    -------
    tuple of str, or None
        None if the module is no plain chain, or does not run on a (rows, features) tensor.

    Notes
    -----
    Cost: one forward pass of 16 rows, and four more for each hidden layer.

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
    # The map that is called first decides the number of features; it is not known yet, so every width is tried.
    widths = dict.fromkeys(in_features(linear) for linear in linears.values())
    generator = torch.Generator().manual_seed(0)
    with trial_run(module):
        for width in widths:
            probe = torch.randn(ROWS, width, generator=generator).to(weights[0])
            try:
                order = _call_order(module, linears, probe)
                if order is not None and all(_reads_alone(module, a, b, probe, generator) for a, b in pairwise(order)):
                    names = {id(linear): name for name, linear in linears.items()}
                    return tuple(names[id(linear)] for linear in order)
            except Exception:  # a module may raise any error for an input that it does not expect
                continue
    return None


def _call_order(module: nn.Module, linears: Mapping[str, nn.Module], probe: torch.Tensor) -> list[nn.Module] | None:
    """Return the maps in the order of their calls, or None if their number or sizes rule out a chain."""
    called: list[nn.Module] = []
    with ExitStack() as hooks:
        for linear in linears.values():
            hooks.callback(linear.register_forward_pre_hook(lambda linear, _inputs: called.append(linear)).remove)
        module(probe)
    fits = all(out_features(a) == in_features(b) for a, b in pairwise(called))
    once = len(called) == len(linears) == len({id(linear) for linear in called})
    return called if once and fits and in_features(called[0]) == probe.shape[-1] else None


def _reads_alone(
    module: nn.Module, producer: nn.Module, consumer: nn.Module, probe: torch.Tensor, generator: torch.Generator
) -> bool:
    """Whether the consumer alone reads the output of the producer, through functions of single neurons."""
    shape = (ROWS, out_features(producer))
    one, other = (torch.randn(shape, generator=generator).to(probe) for _ in range(2))
    from_one = (torch.rand(shape, generator=generator) < 0.5).to(probe.device)
    read: list[torch.Tensor] = []

    def run(hidden: torch.Tensor, consumer_input: torch.Tensor | None = None) -> Any:
        """Run the module with `hidden` as the producer's output, and optionally another input of the consumer."""
        with ExitStack() as hooks:
            hooks.callback(producer.register_forward_hook(lambda *_: hidden).remove)
            hooks.callback(consumer.register_forward_pre_hook(_read_hook(read, consumer_input)).remove)
            return module(probe)

    outputs = [run(one), run(other), run(torch.where(from_one, one, other))]
    # The consumer gets the same input as in the first run. If the output still differs, something else reads the hidden layer.
    outputs.append(run(other, read[0]))
    if any(not isinstance(output, torch.Tensor) for output in outputs) or any(r.shape != shape for r in read):
        return False
    separate = torch.equal(read[2], torch.where(from_one, read[0], read[1]))
    return separate and torch.equal(outputs[0], outputs[3])


def _read_hook(
    read: list[torch.Tensor], substitute: torch.Tensor | None
) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...] | None]:
    """Make a hook that appends a module's input to `read`, and replaces it if there is a substitute."""

    def hook(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        read.append(inputs[0].detach())
        return None if substitute is None else (substitute, *inputs[1:])

    return hook


@contextmanager
def trial_run(module: nn.Module) -> Iterator[None]:
    """Run a module in evaluation mode without gradients; restore its modes and the global random state afterwards.

    Parameters
    ----------
    module : nn.Module
        Each of its submodules gets its own mode back, even if an error is raised.

    Examples
    --------
    >>> dropout, state = nn.Dropout(), torch.get_rng_state()
    >>> with trial_run(dropout):
    ...     _ = torch.rand(1)
    ...     print(dropout.training)
    False
    >>> dropout.training, torch.equal(torch.get_rng_state(), state)
    (True, True)
    """
    modes: Sequence[tuple[nn.Module, bool]] = [(submodule, submodule.training) for submodule in module.modules()]
    try:
        module.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for submodule, mode in modes:
            submodule.training = mode
