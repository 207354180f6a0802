"""Find the mixtures of experts in a model, and the router of each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from llmrank.errors import UnsupportedModelError
from llmrank.models.experts.layout import read_layout
from llmrank.models.experts.mixture import ExpertTensor, Mixture, RoutedExperts
from llmrank.models.experts.separate import SeparateExperts
from llmrank.models.finding.tracing import trial_run

__all__ = ["counts_of_experts", "find_mixtures", "find_separate_mixtures"]

# Names of attributes that hold the number of experts of a token, the number of groups of experts, and the number of groups whose
# experts a token may get.
TOP_K = ("top_k", "num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_top_k", "moe_k", "moe_topk")
GROUPS = ("num_group", "n_group", "num_expert_group")
CHOSEN_GROUPS = ("topk_group",)
# To choose among groups of experts, a router adds up this number of scores of each group.
SCORES_OF_GROUP = 2
# Allowed difference between two ways to compute the same experts, as a share of the largest output. In half precision,
# rounding makes differences of this size.
MOST_DIFFERENCE = 5e-2
EXPERTS = re.compile(r"expert", re.IGNORECASE)
# Names of modules that may be routers.
ROUTER = re.compile(r"(^|_)(gate|router)$", re.IGNORECASE)
# Words in names of attributes that do not hold the number of experts of a mixture.
NO_COUNT = re.compile(r"per_tok|top_?k|shared|capacity|period|offset|interval", re.IGNORECASE)


def find_mixtures(model: nn.Module) -> dict[str, Mixture]:
    """Find the mixtures of experts of a model whose experts share tensors.

    Parameters
    ----------
    model : nn.Module

    Returns
    -------
    dict from str to Mixture
        By the path of the module that holds the experts, in the order of the model's modules.

    Raises
    ------
    UnsupportedModelError
        The router of a mixture is not found, or its experts compute something else than gate, up and down of their tensors.
    """
    modules = dict(model.named_modules())
    found: dict[str, Mixture] = {}
    checked: set[type[nn.Module]] = set()
    for path, module in modules.items():
        layout = read_layout(module)
        if layout is not None:
            experts = RoutedExperts.of(module)
            found[path] = _mixture(path, modules, experts, layout.n_inputs)
            if type(module) not in checked:
                checked.add(type(module))
                _check_experts(path, experts)
    return found


def _check_experts(path: str, experts: RoutedExperts) -> None:
    """Raise unless the experts, run one by one on random tokens, compute what their module computes."""
    owner: Any = experts.owner
    weight = experts[0].maps["down"].weight
    if weight.is_meta:
        return
    n_experts, n_tokens = len(experts), 4
    generator = torch.Generator().manual_seed(0)
    if experts.presorted:
        inputs = [torch.randn(n_experts * n_tokens, len(weight), generator=generator)]
    else:
        chosen = torch.arange(2 * n_tokens).view(n_tokens, 2) % n_experts
        inputs = [torch.randn(n_tokens, len(weight), generator=generator), torch.rand(n_tokens, 2, generator=generator)]
    inputs = [values.to(weight) for values in inputs]
    if not experts.presorted:
        inputs.insert(1, chosen.to(weight.device))
    with trial_run(owner):
        expected, found = owner(*inputs), experts(*inputs)
    scale = float(expected.abs().max())
    if not float((found - expected).abs().max()) <= MOST_DIFFERENCE * scale:
        raise UnsupportedModelError(
            f"{path} ({type(owner).__name__}) holds the tensors of {n_experts} experts, and computes something else than gate, "
            "up and down of each; its experts cannot be pruned: name Linears outside the experts with structure_dict="
        )


def find_separate_mixtures(
    modules: Mapping[str, nn.Module], ffns: Mapping[str, tuple[tuple[int, ...], Sequence[nn.Module]]]
) -> dict[str, Mixture]:
    """Find the mixtures whose experts are FFNs in an ``nn.ModuleList`` or ``nn.ModuleDict``, beside a router.

    Parameters
    ----------
    modules : mapping from str to nn.Module
        All modules of the model, by path.
    ffns : mapping from str to (tuple of int, sequence of nn.Module)
        For each FFN, by the path of its module: the sizes of its layers of nodes, and its linear maps, the output map last.

    Returns
    -------
    dict from str to Mixture
        By the path of the ``nn.ModuleList`` or ``nn.ModuleDict``.

    Raises
    ------
    UnsupportedModelError
        A list is named after experts, and no router is found beside it.
    """
    found = {}
    for path, module in modules.items():
        # Modules without parameters, such as a dropout, are no members.
        members = [ffns.get(f"{path}.{name}") for name, child in module.named_children() if _has_parameters(child)]
        # Experts have one layer of hidden neurons, so three layers of nodes.
        experts = [member for member in members if member is not None and len(member[0]) == 3]
        is_list = isinstance(module, (nn.ModuleList, nn.ModuleDict)) and len(members) > 1 and path
        if not is_list or len(experts) < len(members) or len({sizes for sizes, _ in experts}) > 1:
            continue
        block = modules[path.rpartition(".")[0]]
        sizes = experts[0][0]
        is_named = EXPERTS.search(path.rpartition(".")[2]) or EXPERTS.search(type(module).__name__)
        if is_named or len(_routers(path, block, len(experts))) == 1:
            has_forward = type(module).forward is not nn.Module.forward
            separate = SeparateExperts(module, module if has_forward else block, [m for _, m in experts], *sizes[1:])
            found[path] = _mixture(path, modules, separate, sizes[0])
    return found


def _has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _mixture(
    path: str, modules: Mapping[str, nn.Module], experts: RoutedExperts | SeparateExperts, n_inputs: int
) -> Mixture:
    """Describe the mixture whose experts are at a path."""
    block, module = path.rpartition(".")[0], modules[path]
    router, router_path = _router(path, modules[block], len(experts))
    top_k = _first_number(TOP_K, router, modules[block], module) or 1
    n_groups = _first_number(GROUPS, router, modules[block]) or 1
    chosen_groups = _first_number(CHOSEN_GROUPS, router, modules[block]) or n_groups
    # The chosen groups together must keep an expert for each of the top_k, and each group the scores that are added up.
    min_kept = top_k if n_groups == 1 else max(-(-top_k // chosen_groups), SCORES_OF_GROUP)
    module_around = _module_around(path, modules, experts)
    # No expert is removed, and so no tensor of the router is needed, if there is only one expert, or if the router's matrix does
    # not have exactly one row for each expert (Zaya's router may also skip all experts).
    if len(experts) == 1 or len(_router_weights(router, len(experts))) != 1:
        return Mixture(
            path, block, experts, module_around, router, router_path, (), (), top_k, 1, min_kept=len(experts)
        )
    tensors = tuple(_tensors_by_expert(modules[block], router, len(experts), n_inputs))
    ancestors = [modules[".".join(path.split(".")[:k])] for k in range(path.count(".") + 2)]
    counts = tuple(counts_of_experts((*ancestors, *router.modules()), len(experts)))
    return Mixture(path, block, experts, module_around, router, router_path, tensors, counts, top_k, n_groups, min_kept)


def _module_around(path: str, modules: Mapping[str, nn.Module], experts: RoutedExperts | SeparateExperts) -> nn.Module:
    """Return the module whose input the experts may read, and whose output is the sum of what they return."""
    if isinstance(experts, SeparateExperts):
        return experts.site
    block = path.rpartition(".")[0]
    is_transformer_block = block.rpartition(".")[2].isdigit()
    return experts if is_transformer_block else modules[block]


def _router(path: str, block: nn.Module, n_experts: int) -> tuple[nn.Module, str]:
    """Return the router of the experts at `path`, and the path of the router.

    It is the module beside the experts with one row for each expert; or if there is none, the module that is named as a router.
    """
    beside = _routers(path, block, n_experts)
    named = {name: child for name, child in block.named_children() if ROUTER.search(name) and _has_parameters(child)}
    if not beside and len(named) == 1:
        beside = named
    if len(beside) != 1:
        raise UnsupportedModelError(
            f"{path} holds {n_experts} experts, and their router was not found: expected one module beside them "
            f"with one row for each expert, or with the name gate or router, found {list(beside) or 'none'}; its experts "
            "cannot be pruned: name Linears outside the experts with structure_dict="
        )
    ((name, router),) = beside.items()
    return router, f"{path.rpartition('.')[0]}.{name}".lstrip(".")


def _routers(path: str, block: nn.Module, n_experts: int) -> dict[str, nn.Module]:
    """Return the modules that may be the router of the experts at `path`, by their names in the block around the experts."""
    return {
        name: child
        for name, child in block.named_children()
        if name != path.rpartition(".")[2] and len(_router_weights(child, n_experts)) == 1
    }


def _router_weights(module: nn.Module, n_experts: int) -> list[nn.Parameter]:
    """Return the matrices of a module with one row for each expert, if it holds no other matrix."""
    # A correction bias may be stored as (1, experts).
    matrices = [p for p in module.parameters() if p.ndim == 2 and p.shape[0] > 1]
    return matrices if all(p.shape[0] == n_experts for p in matrices) else []


def _tensors_by_expert(block: nn.Module, router: nn.Module, n_experts: int, n_inputs: int) -> Iterator[ExpertTensor]:
    """Yield the tensors of the router, and those that the block itself holds, that have one entry for each expert."""
    for owner in (*router.modules(), block):
        named: Mapping[str, torch.Tensor | None] = {**owner._parameters, **owner._buffers}
        for name, tensor in named.items():
            if tensor is None or n_experts not in tensor.shape:
                continue
            if tensor.ndim == 1 and n_experts == n_inputs and name in ("scale", "weight"):
                continue  # a norm or a scale of the residual stream, which is as wide as there are experts
            yield ExpertTensor(owner, name, tensor.shape.index(n_experts))


def counts_of_experts(holders: Iterable[Any], n_experts: int) -> Iterator[tuple[Any, str]]:
    """Yield (holder, name) for every attribute of modules or configurations that holds the number of experts of a mixture."""
    for module in holders:
        for name, value in vars(module).items():
            counts = EXPERTS.search(name) and not NO_COUNT.search(name)
            if type(value) is int and value == n_experts and (counts or name == "out_features"):
                yield module, name


def _first_number(names: tuple[str, ...], *modules: nn.Module) -> int | None:
    """Return the first positive integer among attributes of the modules, or of their configurations."""
    for module in modules:
        for holder in (module, getattr(module, "config", None)):
            for name in names:
                value: Any = getattr(holder, name, None)
                if isinstance(value, int) and value > 0:
                    return value
    return None
