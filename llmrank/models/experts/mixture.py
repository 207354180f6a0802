"""A mixture of experts: its experts, its router, and how to run it expert by expert."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from llmrank.models.compat import experts_computed_by, is_dispatched
from llmrank.models.experts.expert_map import Expert, ExpertMap, Routing, set_forward, substitute_forward
from llmrank.models.experts.layout import read_layout
from llmrank.models.experts.separate import SeparateExperts

__all__ = ["ExpertTensor", "Mixture", "RouteAround", "RoutedExperts", "by_expert", "route_around"]


@dataclass(frozen=True, eq=False)
class ExpertTensor:
    """A tensor with one entry for each expert, such as the router's weight or a correction bias.

    Attributes
    ----------
    owner : nn.Module
        Module that holds it, as a parameter or a buffer.
    name : str
    axis : int
        The axis of the experts.
    """

    owner: nn.Module
    name: str
    axis: int

    @property
    def tensors(self) -> dict[str, Any]:
        """The dictionary of the owner that holds the tensor: its parameters or its buffers."""
        owner = self.owner
        return owner._parameters if self.name in owner._parameters else owner._buffers


class RoutedExperts(nn.Module):
    """All experts of a mixture, run one by one on the tokens that the router sends them.

    Parameters
    ----------
    owner : nn.Module
        The module of the model in whose place these experts compute.
    experts : list of Expert
    presorted : bool
        Whether the model passes one copy of all tokens for each expert, in which every token is multiplied by its routing weight
        (Llama 4). Otherwise the model passes the tokens, the positions of their experts, and the routing weights.
    """

    def __init__(self, owner: nn.Module, experts: list[Expert], *, presorted: bool) -> None:
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.presorted = presorted
        self._owner = (owner,)

    @classmethod
    def of(cls, owner: nn.Module) -> RoutedExperts:
        """Make the experts of a module whose tensors :func:`llmrank.models.experts.layout.read_layout` can read."""
        layout = read_layout(owner)
        if layout is None:
            raise TypeError(f"{type(owner).__name__} holds no tensors of experts in a layout that is known")
        experts = [Expert.of(owner, layout, position) for position in range(layout.n_experts)]
        return cls(owner, experts, presorted=layout.presorted)

    @property
    def owner(self) -> nn.Module:
        """The module of the model."""
        return self._owner[0]

    def __getitem__(self, position: int) -> Expert:
        expert: Any = self.experts[position]
        return expert  # type: ignore[no-any-return]

    def __len__(self) -> int:
        return len(self.experts)

    def __iter__(self) -> Iterator[Expert]:
        experts: Any = iter(self.experts)
        return experts  # type: ignore[no-any-return]

    @property
    def n_hidden(self) -> int:
        """Number of hidden neurons of each expert."""
        return self[0].n_hidden

    def forward(self, values: torch.Tensor, *routing: torch.Tensor) -> torch.Tensor:
        """Compute what `owner` computes, from the same arguments."""
        if self.presorted:
            return self._forward_presorted(values)
        chosen, weights = routing
        inputs = values.reshape(-1, values.shape[-1])
        chosen, weights = chosen.reshape(len(inputs), -1), weights.reshape(len(inputs), -1)
        totals = weights.sum(-1)
        outputs = torch.zeros(
            inputs.shape, dtype=torch.promote_types(values.dtype, weights.dtype), device=values.device
        )
        for position, expert in enumerate(self.experts):
            # LongCat-Flash names experts with weight 0 for tokens that no expert computes.
            tokens, place = torch.where((chosen == position) & (weights != 0))
            weight = weights[tokens, place]
            output = self._run(expert, inputs, tokens, weight, totals[tokens])
            # An expert gets a token at most once, so no two threads of a GPU add to one row. Sums have the order of the experts.
            outputs.index_add_(0, tokens, (output * weight[:, None]).to(outputs.dtype))
        if hasattr(self.owner, "identity_expert"):
            unchanged = torch.where(chosen >= len(self), weights, torch.zeros_like(weights)).sum(-1)
            outputs += inputs * unchanged[:, None]
        return outputs.to(values.dtype).view(values.shape)

    def _forward_presorted(self, values: torch.Tensor) -> torch.Tensor:
        copies = values.view(len(self.experts), -1, values.shape[-1])
        outputs = torch.zeros_like(copies)
        # In the copy for an expert, the tokens that the expert does not get are zero.
        routed = copies.any(-1)
        n_experts = routed.sum(0)
        for position, expert in enumerate(self.experts):
            tokens = routed[position].nonzero().flatten()
            # The tokens are multiplied by their routing weights already.
            ones = values.new_ones(len(tokens))
            outputs[position, tokens] = self._run(expert, copies[position], tokens, ones, n_experts[tokens].to(ones))
        return outputs.view(values.shape)

    @staticmethod
    def _run(
        expert: nn.Module, values: torch.Tensor, tokens: torch.Tensor, weights: torch.Tensor, totals: torch.Tensor
    ) -> torch.Tensor:
        routing: Any = expert.routing
        routing.tokens, routing.weights, routing.totals = tokens, weights, totals
        output: torch.Tensor = expert(values[tokens])
        return output


@dataclass(frozen=True, eq=False)
class Mixture:
    """A mixture of experts in a model.

    Attributes
    ----------
    name : str
        Path of the module of the experts.
    block : str
        Path of the module that holds the experts and their router.
    experts : RoutedExperts or SeparateExperts
        RoutedExperts if the experts share tensors, SeparateExperts if they are modules.
    module : nn.Module
        The module whose input every expert may read, and whose output is the sum of what the experts return. It is the module at
        `block`; or if that is a transformer block, the module of the experts.
    router : nn.Module
        The module that chooses the experts of each token.
    router_name : str
        Path of the router.
    tensors_by_expert : tuple of ExpertTensor
        The tensors that have one entry for each expert, such as the router's weight; not the experts' own tensors.
    counts : tuple of (nn.Module, str)
        Attributes of modules that hold the number of experts.
    top_k : int
        Number of experts that each token gets.
    n_groups : int
        Number of groups of consecutive experts. The router first chooses groups, then experts in them. 1 without groups.
    min_kept : int
        Fewest experts of each group that the router needs.
    """

    name: str
    block: str
    experts: RoutedExperts | SeparateExperts
    module: nn.Module
    router: nn.Module
    router_name: str
    tensors_by_expert: tuple[ExpertTensor, ...]
    counts: tuple[tuple[nn.Module, str], ...]
    top_k: int
    n_groups: int = 1
    min_kept: int = 1

    @property
    def shares_tensors(self) -> bool:
        """Whether all experts share tensors, so that they must stay equally wide."""
        return isinstance(self.experts, RoutedExperts)

    @property
    def n_experts(self) -> int:
        """Number of experts."""
        return len(self.experts)

    @property
    def summed(self) -> nn.Module:
        """The module whose output is what all experts return together."""
        return self.experts if isinstance(self.experts, RoutedExperts) else self.experts.site

    def is_expert(self, module: nn.Module) -> bool:
        """Whether a module is one of the experts."""
        return module in self.experts if isinstance(self.experts, SeparateExperts) else isinstance(module, Expert)

    def routing_of(self, module: nn.Module) -> Routing | None:
        """Return the tokens that the expert with this linear map gets now; None if the map belongs to none of the experts."""
        if isinstance(self.experts, SeparateExperts):
            return self.experts.routing_of(module)
        return module.routing if isinstance(module, ExpertMap) else None


@contextmanager
def by_expert(mixtures: Iterable[Mixture]) -> Iterator[None]:
    """Let a model compute its mixtures expert by expert within the context, so that hooks on the maps of experts are called.

    While an expert computes, its :class:`Routing` holds the tokens that it gets. Cost: mixtures take as long as with the eager
    implementation of transformers.
    """
    with ExitStack() as cleanup:
        routed = {}
        for mixture in mixtures:
            if isinstance(mixture.experts, RoutedExperts):
                routed[id(mixture.experts.owner)] = mixture.experts
            else:
                cleanup.enter_context(mixture.experts.observed())
        if routed:
            cleanup.enter_context(_one_by_one(routed))
        yield


@contextmanager
def _one_by_one(routed: dict[int, RoutedExperts]) -> Iterator[None]:
    """Let experts compute, within the context, in place of the modules that hold their tensors.

    `routed` holds the experts by the id of that module, and is extended if the model calls another module of experts.
    """

    def compute(owner: nn.Module, *args: Any, **kwargs: Any) -> Any:
        # Experts that are not listed may share the configuration by which transformers finds this function.
        if id(owner) not in routed:
            routed[id(owner)] = RoutedExperts.of(owner)
        return routed[id(owner)](*args, *kwargs.values())

    with ExitStack() as cleanup:
        configs = {}
        for experts in routed.values():
            owner: Any = experts.owner
            if is_dispatched(owner):
                configs[id(owner.config)] = owner.config
            else:
                substitute_forward(cleanup, owner, experts.__call__)
        cleanup.enter_context(experts_computed_by(compute, configs.values()))
        yield


class _Silence(TorchFunctionMode):
    """Sets the logits of removed experts to minus infinity while a router runs.

    Every product with one output for each expert is taken to compute logits.
    """

    def __init__(self, removed: torch.Tensor) -> None:
        super().__init__()
        self._removed = removed

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        products = (torch.nn.functional.linear, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__)
        if func in products and result.shape[-1] == len(self._removed):
            return result.masked_fill(self._removed.to(result.device), -torch.inf)
        return result


class RouteAround:
    """The forward function of a router that chooses among the kept experts only.

    Parameters
    ----------
    forward : callable
        The router's own forward function.
    keep : (experts,) bool tensor
    """

    def __init__(self, forward: Callable[..., Any], keep: torch.Tensor) -> None:
        self._forward, self._keep = forward, keep

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the router."""
        with _Silence(~self._keep):
            return self._forward(*args, **kwargs)


def route_around(mixture: Mixture, keep: torch.Tensor, hooks: ExitStack) -> None:
    """Let the router of a mixture choose among the kept experts only, until `hooks` closes.

    Parameters
    ----------
    mixture : Mixture
    keep : (experts,) bool tensor
    hooks : ExitStack
    """
    router = mixture.router
    own_forward = vars(router).get("forward")
    # Removed experts have a score of 0, which a bias that corrects scores could raise, so their bias becomes minus infinity.
    corrections = [part for part in mixture.tensors_by_expert if "bias" in part.name and "correction" in part.name]
    before = [(part, part.tensors[part.name]) for part in corrections]

    def restore() -> None:
        set_forward(router, own_forward)
        for part, tensor in before:
            part.tensors[part.name] = tensor

    # The restoration is registered before the change, and twice, in case an interrupt comes during the first restoration.
    for _ in range(2):
        hooks.callback(restore)
    for part, tensor in before:
        shape = [-1 if axis == part.axis else 1 for axis in range(tensor.ndim)]
        silenced = tensor.detach().masked_fill(~keep.to(tensor.device).view(shape), -torch.inf)
        part.tensors[part.name] = (
            nn.Parameter(silenced, requires_grad=False) if isinstance(tensor, nn.Parameter) else silenced
        )
    vars(router)["forward"] = RouteAround(router.forward, keep)
