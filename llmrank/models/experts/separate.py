"""Mixtures whose experts are modules of their own, beside a router, in an ``nn.ModuleList`` or ``nn.ModuleDict``.

Any code may pass tokens to such experts, so it is measured which tokens an expert gets. The code runs a few times more with
experts that return known numbers, and the numbers in its output tell the tokens and their weights.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from llmrank.errors import CalibrationError, not_finite
from llmrank.models.experts.expert_map import Routing, substitute_forward

__all__ = ["SeparateExperts"]


@dataclass(frozen=True)
class _Probe:
    """A known output of one expert: a number in one column, and zeros in the others.

    Without a bit, all rows hold the number, which shows the tokens that the expert gets and their weights. With a bit, only rows
    hold it that have this bit set in their index; all bits together show which token is in which row.
    """

    expert: int
    bit: int | None = None

    def write(self, outputs: torch.Tensor, column: int, scale: float) -> None:
        rows = torch.arange(len(outputs), device=outputs.device)
        outputs[:, column] = scale if self.bit is None else scale * ((rows >> self.bit) & 1).to(outputs)


class SeparateExperts:
    """The experts of a mixture that are modules of the model.

    Parameters
    ----------
    owner : nn.ModuleList or nn.ModuleDict
        The module that holds the experts.
    site : nn.Module
        The module whose output is the sum of what the experts return: `owner` if it has a forward function, else the module
        around `owner`.
    linear_maps : sequence of sequences of nn.Module
        The linear maps of every expert; the last one is its output map.
    n_hidden, n_outputs : int
        Numbers of hidden neurons and outputs of each expert.
    """

    def __init__(
        self,
        owner: nn.Module,
        site: nn.Module,
        linear_maps: Sequence[Sequence[nn.Module]],
        n_hidden: int,
        n_outputs: int,
    ) -> None:
        self.owner, self.site = owner, site
        self.n_hidden, self._n_outputs = n_hidden, n_outputs
        self._names = [name for name, child in owner.named_children() if any(True for _ in child.parameters())]
        self._experts = [owner.get_submodule(name) for name in self._names]
        self._routings = [Routing() for _ in linear_maps]
        self._routing_of_map = {
            id(module): routing for maps, routing in zip(linear_maps, self._routings, strict=True) for module in maps
        }
        self._expert_ids = set(map(id, self._experts))

    def __len__(self) -> int:
        return len(self._experts)

    def __contains__(self, module: object) -> bool:
        return id(module) in self._expert_ids

    def routing_of(self, module: nn.Module) -> Routing | None:
        """Return the tokens that the expert with this linear map gets; None for a module that is no map of these experts."""
        return self._routing_of_map.get(id(module))

    def names(self) -> tuple[str, ...]:
        """Return the names of the experts in their owner."""
        return tuple(self._names)

    def keep(self, kept: Sequence[bool]) -> None:
        """Remove the experts that are not `kept` from their owner; the others get the names of the first experts."""
        remaining = iter([expert for expert, is_kept in zip(self._experts, kept, strict=True) if is_kept])
        children = dict(self.owner._modules)
        for name in self._names:
            expert = next(remaining, None)
            if expert is None:
                del children[name]
            else:
                children[name] = expert
        self.owner._modules.clear()
        self.owner._modules.update(children)

    @contextmanager
    def observed(self) -> Iterator[None]:
        """Measure, within the context, which tokens every expert gets whenever the model calls the mixture.

        Cost: the mixture's code runs a few times more, without its experts.
        """
        forward = self.site.forward

        def observe(*args: Any, **kwargs: Any) -> Any:
            with torch.no_grad(), _without_hooks(self.site):
                self._measure(lambda: forward(*args, **kwargs))
            return forward(*args, **kwargs)

        with ExitStack() as undo:
            substitute_forward(undo, self.site, observe)
            yield

    def _measure(self, run: Callable[[], Any]) -> None:
        """Set the routing of every expert, from what `run`, the code of the mixture, returns for known outputs of the experts."""
        # The number of rows that each expert gets, and the output of the mixture if all experts return zeros.
        n_rows: dict[int, int] = {}
        silent = self._outputs(run, {}, 0.0, n_rows)
        if not n_rows:
            raise CalibrationError(
                f"{type(self.site).__name__} does not call its experts, so which tokens they get cannot be seen; expected "
                "experts that are called as modules: prune another model, or name Linears with structure_dict="
            )
        if not bool(torch.isfinite(silent).all()):
            raise not_finite(f"the activations around the experts of {type(self.site).__name__} are")
        probes = [_Probe(expert) for expert in n_rows]
        probes += [_Probe(e, bit) for e, n in n_rows.items() for bit in range((n - 1).bit_length())]
        # The known number is larger than the rest of the output (of a shared expert, say), so that subtracting the rest costs
        # little precision. It is at most 8192, because float16 ends at 65504.
        scale = 2.0 ** min(13, 8 + int(silent.abs().max()).bit_length())
        answers: dict[_Probe, torch.Tensor] = {}
        for start in range(0, len(probes), self._n_outputs):
            columns = probes[start : start + self._n_outputs]
            seen = (self._outputs(run, dict(enumerate(columns)), scale, {}) - silent) / scale
            answers |= {probe: seen[:, column] for column, probe in enumerate(columns)}
        totals = torch.stack([answers[_Probe(expert)] for expert in n_rows]).sum(0)
        for expert, routing in enumerate(self._routings):
            count = n_rows.get(expert, 0)
            tokens = self._tokens(expert, count, answers) if count else silent.new_empty(0, dtype=torch.int64)
            routing.tokens = tokens
            routing.weights = answers[_Probe(expert)][tokens] if count else silent.new_empty(0)
            routing.totals = totals[tokens]

    def _tokens(self, expert: int, count: int, answers: Mapping[_Probe, torch.Tensor]) -> torch.Tensor:
        """Return the token of each row that an expert gets."""
        weights = answers[_Probe(expert)].abs()
        tokens = weights.topk(min(count, len(weights))).indices
        rows = torch.zeros_like(tokens)
        for bit in range((count - 1).bit_length()):
            is_set = answers[_Probe(expert, bit)].abs()[tokens] > weights[tokens] / 2
            rows += is_set.long() << bit
        ordered, order = rows.sort()
        if not torch.equal(ordered, torch.arange(count, device=rows.device)):
            raise CalibrationError(
                f"cannot tell which tokens expert {expert} of {type(self.site).__name__} gets; expected a mixture that "
                "sends a token to an expert once, and whose output is a weighted sum of what its experts return: name Linears "
                "outside the experts with structure_dict="
            )
        return tokens[order]

    def _outputs(
        self, run: Callable[[], Any], columns: Mapping[int, _Probe], scale: float, n_rows: dict[int, int]
    ) -> torch.Tensor:
        """Run the mixture with experts that return zeros, and `scale` where the probe of a column says so.

        Returns the output of the mixture, (tokens, n). The number of rows that each expert got is written to `n_rows`.
        """
        with ExitStack() as undo:
            for position, expert in enumerate(self._experts):

                def answer(*args: Any, _position: int = position, **kwargs: Any) -> torch.Tensor:
                    values: torch.Tensor = next(v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor))
                    outputs = values.new_zeros(values.numel() // values.shape[-1], self._n_outputs)
                    if len(outputs):
                        n_rows[_position] = len(outputs)
                    for column, probe in columns.items():
                        if probe.expert == _position:
                            probe.write(outputs, column, scale)
                    return outputs.view(*values.shape[:-1], self._n_outputs)

                substitute_forward(undo, expert, answer)
            output = run()
        first: torch.Tensor = output if isinstance(output, torch.Tensor) else output[0]
        return first.detach().reshape(-1, first.shape[-1]).float()


@contextmanager
def _without_hooks(module: nn.Module) -> Iterator[None]:
    """Call no hook of a module and of those inside it within the context."""
    with ExitStack() as undo:
        for inner in module.modules():
            for name in ("_forward_hooks", "_forward_pre_hooks"):
                undo.callback(setattr, inner, name, getattr(inner, name))
                setattr(inner, name, OrderedDict())
        yield
