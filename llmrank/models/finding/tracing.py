"""Trial runs of a module: in which order it calls its linear maps, and whether other code reads their outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from llmrank.models.linear_map import in_features, out_features

__all__ = ["in_evaluation_mode", "is_odd_in", "linear_chain", "reads_unchanged", "trial_run"]

# Number of rows, each a random feature vector, in a trial run. A module that swaps two neurons is overlooked with
# probability 2 ** -ROWS.
ROWS = 16


def linear_chain(
    module: nn.Module, linears: Mapping[str, nn.Module], *, check_neurons: bool = True
) -> tuple[str, ...] | None:
    """Return the names of a module's linear maps in the order of the data, if the module is a plain chain of them.

    In a plain chain each map is called once. Only the next map reads a hidden layer, through functions that act on each neuron
    separately, such as ReLU.

    Parameters
    ----------
    module : nn.Module
        A module that runs on random features. It is left unchanged.
    linears : mapping from str to nn.Module
        All linear maps of the module, by name.
    check_neurons : bool
        Whether to check how hidden layers are read. If not, only calls and sizes are checked.

    Returns
    -------
    tuple of str, or None
        None if the module is no plain chain of two or more maps, fails to run, or has maps on the meta device when neurons are
        checked.

    Notes
    -----
    Cost: for each size that the input can have, at most one forward pass of 16 rows, and four for each hidden layer.

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
    parameters = [parameter for linear in linears.values() for parameter in linear.parameters()]
    if len(linears) < 2 or (check_neurons and any(parameter.is_meta for parameter in parameters)):
        return None
    # Which map is called first is not known yet, so the number of features of every map is tried.
    n_features = dict.fromkeys(in_features(linear) for linear in linears.values())
    generator = torch.Generator().manual_seed(0)
    with trial_run(module):
        for n in n_features:
            probe = torch.randn(ROWS, n, generator=generator).to(parameters[0])
            try:
                order = _call_order(module, linears, probe)
                if order is not None and (
                    not check_neurons or all(_reads_alone(module, a, b, probe, generator) for a, b in pairwise(order))
                ):
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
    module: nn.Module, first: nn.Module, second: nn.Module, probe: torch.Tensor, generator: torch.Generator
) -> bool:
    """Whether the second map alone reads the output of the first, through functions of single neurons."""
    shape = (ROWS, out_features(first))
    one, other = (torch.randn(shape, generator=generator).to(probe) for _ in range(2))
    from_one = (torch.rand(shape, generator=generator) < 0.5).to(probe.device)
    read: list[torch.Tensor] = []

    def run(hidden: torch.Tensor, substitute: torch.Tensor | None = None) -> Any:
        """Run the module with `hidden` as the first map's output, and optionally a substitute for the second map's input."""

        def read_input(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
            read.append(inputs[0].detach())
            return None if substitute is None else (substitute, *inputs[1:])

        with ExitStack() as hooks:
            hooks.callback(first.register_forward_hook(lambda *_: hidden).remove)
            hooks.callback(second.register_forward_pre_hook(read_input).remove)
            return module(probe)

    # The third run takes each value of the hidden layer from the first or the second run. If functions of single neurons lead to
    # the second map, what it reads is the same mixture of what it read in these two runs.
    outputs = [run(one), run(other), run(torch.where(from_one, one, other))]
    # The fourth run gives the second map its input of the first run. If the output differs from that of the first run,
    # something else reads the hidden layer.
    outputs.append(run(other, read[0]))
    if any(not isinstance(output, torch.Tensor) for output in outputs) or any(r.shape != shape for r in read):
        return False
    is_separate = torch.equal(read[2], torch.where(from_one, read[0], read[1]))
    return is_separate and torch.equal(outputs[0], outputs[3])


def reads_unchanged(module: nn.Module, first: nn.Module, second: nn.Module) -> bool:
    """Whether the second linear map reads the output of the first unchanged, so that both together are a map of low rank.

    Parameters
    ----------
    module : nn.Module
        A module that runs on random features. It is left unchanged. In the run, tensors on the meta device are replaced by random
        ones.
    first, second : nn.Linear or Conv1D
        Maps inside the module.

    Returns
    -------
    bool
        False if the module fails to run on features alone.

    Examples
    --------
    >>> low_rank = nn.Sequential(nn.Linear(4, 2), nn.Identity(), nn.Linear(2, 4))
    >>> reads_unchanged(low_rank, low_rank[0], low_rank[2])
    True
    """
    seen: list[torch.Tensor] = []
    with ExitStack() as hooks:
        hooks.callback(first.register_forward_hook(lambda _module, _inputs, output: seen.append(output)).remove)
        hooks.callback(second.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0])).remove)
        ran = _runs_on_features(module, first)
    return ran and len(seen) == 2 and torch.equal(*seen)


def is_odd_in(module: nn.Module, first: nn.Module, outputs: slice, second: nn.Module) -> bool:
    """Whether what the second linear map reads changes its sign, and nothing else, if some outputs of the first change theirs.

    In a gated FFN, ``act(gate x) * up x``, the product is odd in the outputs of `up`, and with the usual activation functions
    not in those of the gate.

    Parameters
    ----------
    module, first, second
        See :func:`reads_unchanged`.
    outputs : slice
        The outputs of `first`.

    Returns
    -------
    bool
        False if the module fails to run on features alone.

    Examples
    --------
    >>> class GatedFFN(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.gate_and_up, self.down = nn.Linear(3, 8), nn.Linear(4, 3)
    ...
    ...     def forward(self, x):
    ...         gate, up = self.gate_and_up(x).chunk(2, -1)
    ...         return self.down(nn.functional.silu(gate) * up)
    >>> ffn = GatedFFN()
    >>> [is_odd_in(ffn, ffn.gate_and_up, half, ffn.down) for half in (slice(0, 4), slice(4, 8))]
    [False, True]
    """

    def negated(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        changed = output.clone()
        changed[..., outputs] = -changed[..., outputs]
        return changed

    seen: list[torch.Tensor] = []
    with ExitStack() as hooks:
        hooks.callback(second.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0])).remove)
        ran = _runs_on_features(module, first)
        hooks.callback(first.register_forward_hook(negated).remove)
        ran = ran and _runs_on_features(module, first)
    return ran and len(seen) == 2 and torch.equal(seen[0], -seen[1])


def _runs_on_features(module: nn.Module, first: nn.Module) -> bool:
    """Run a module on random features, and return whether that raised no error.

    The features are always the same, and so are the random tensors that replace those on the meta device.
    """
    generator = torch.Generator().manual_seed(0)
    named = (*module.named_parameters(), *module.named_buffers())
    weight: Any = first.weight
    # Models that are being loaded are built where "meta" is the device of new tensors.
    with trial_run(module), torch.device("cpu" if weight.is_meta else weight.device):
        state = {
            name: torch.randn(value.shape, generator=generator, device="cpu").to(value.dtype)
            for name, value in named
            if value.is_meta
        }
        probe = torch.randn(1, ROWS, in_features(first), generator=generator, device="cpu")
        probe = probe.to(weight.dtype) if weight.is_meta else probe.to(weight)
        try:
            functional_call(module, state, (probe,))
        except Exception:  # a module may raise any error for an input that it does not expect
            return False
    return True


@contextmanager
def trial_run(module: nn.Module) -> Iterator[None]:
    """Enter a context in which a module runs in evaluation mode and without gradients.

    At the end of the context the modes of its modules and torch's random state on the CPU are restored.

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
    with in_evaluation_mode(module), torch.no_grad(), torch.random.fork_rng(devices=[]):
        yield


@contextmanager
def in_evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Set a module to evaluation mode (no dropout), and restore the mode of every module inside it afterwards."""
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for submodule, mode in modes:
            submodule.training = mode
