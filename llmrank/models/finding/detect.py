"""Find the FFNs of a model by the shapes of its linear maps, not by the model's name.

The linear maps inside a module, without maps of attention, are an FFN if they are exactly d -> f and f -> d (plain), two
d -> f and one f -> d (gated), or d -> 2f and f -> d (fused). A module that holds the three maps of a gated FFN may hold more
linear maps, such as a router, if none of them has f inputs or f outputs. An ``nn.Sequential`` of Linears and pointwise functions
is a sequential FFN. If no module has such maps, a trial run shows which modules are chains of linear maps (multilayer
perceptrons).

A module is an attention if one of its own linear maps is named after queries. If none is, the name of the module or of its class
decides, unless its own maps have the shapes of an FFN.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from llmrank.errors import UnsupportedModelError
from llmrank.models.checks import (
    check_experts_known,
    check_not_quantised,
    check_not_tied,
    check_not_wrapped,
    check_weights_finite,
)
from llmrank.models.experts import Expert, Mixture, RoutedExperts, find_mixtures, find_separate_mixtures
from llmrank.models.families import text_config
from llmrank.models.ffn import FFN, FFNKind, FFNs, LinearMap
from llmrank.models.finding.neurons import check_neurons_separate, check_no_parameter_of_neurons, parameter_of_neurons
from llmrank.models.finding.tracing import is_odd_in, linear_chain, reads_unchanged
from llmrank.models.linear_map import in_features, is_linear, out_features

__all__ = ["find_ffns"]

# Modules that act on each neuron alone.
POINTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.ELU, nn.SELU, nn.CELU, nn.LeakyReLU, nn.Mish),
    *(nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Tanhshrink),
    *(nn.Dropout, nn.AlphaDropout, nn.Identity),
)
# Names of linear maps that compute queries: q_proj, to_q, Wqkv, query_key_value, in_proj_qkvz.
QUERIES = re.compile(r"(^|_)w?(q|qkv|qkvz|query)(_|$)", re.IGNORECASE)
ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)


def find_ffns(model: nn.Module) -> FFNs:
    """Find the FFNs of a model, in the order of its modules.

    Parameters
    ----------
    model : nn.Module
        A transformers model or any torch module.

    Returns
    -------
    FFNs
        Each module appears once, even if the model uses it in several places.

    Raises
    ------
    UnsupportedModelError
        The model is compiled or wrapped by adapters; its weights are quantised or not finite; it stores experts in an unknown
        way; an FFN shares a weight with another module, its neurons cannot be separated, or its output map is unclear; or no FFN
        is found (the message lists the linear maps).

    Examples
    --------
    >>> mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    >>> [(ffn.kind, ffn.sizes, len(ffn.prunable)) for ffn in find_ffns(mlp)]
    [('sequential', (4, 8, 6, 2), 2)]
    """
    check_not_wrapped(model)
    mixtures = find_mixtures(model)
    modules = dict(model.named_modules())
    linears = {name: module for name, module in modules.items() if is_linear(module)}
    check_not_quantised(model, linears)
    check_weights_finite(model)
    attention_prefixes = _attention_prefixes(modules, linears)
    not_ffn = (*attention_prefixes, *(_prefix(mixture.router_name) for mixture in mixtures.values()))
    candidates = {name: module for name, module in linears.items() if not _prefix(name).startswith(not_ffn)}
    claimed: set[str] = set()
    found: dict[str, FFN] = {}
    # Deepest first, so that the FFN gets the name of the smallest module that holds all of it.
    for name in sorted(modules, key=_deepest_first):
        module, prefix = modules[name], _prefix(name)
        inside = [entry for entry in candidates.items() if entry[0] not in claimed and entry[0].startswith(prefix)]
        if len(inside) < 2:
            continue
        ffn = _sequential_ffn(name, module, candidates) or _ffn_by_shapes(name, module, inside)
        ffn = ffn or _ffn_by_shapes(name, module, _gated_maps(name, inside))
        if ffn is not None:
            found[name] = ffn
            claimed.update(linear_map.name for stage in ffn.stages for linear_map in stage)
    mixtures |= find_separate_mixtures(modules, {name: (ffn.sizes, _modules_of(ffn)) for name, ffn in found.items()})
    check_experts_known(model, mixtures, [module for ffn in found.values() for module in _modules_of(ffn)])
    config = text_config(model)
    ffns = [ffn for name in modules for ffn in _ffns_at(name, found, mixtures, config)]
    stacked = [ffn for ffn in ffns if ffn.stack != ffn.name]
    # If FFNs lie in a repeating stack, modules outside it that have the shapes of an FFN (prediction heads) are not FFNs.
    ffns = stacked or ffns
    # Each FFN with the path of a parameter that acts on its neurons, such as a norm; the path is "" if there is none.
    neuron_parameters = [(ffn, parameter_of_neurons(ffn, attention_prefixes)) for ffn in ffns]
    ffns = _without_bottlenecks([ffn for ffn, parameter in neuron_parameters if not parameter])
    ffns = ffns or _chain_ffns(modules, linears, candidates, attention_prefixes)
    if not ffns:
        check_no_parameter_of_neurons(neuron_parameters)
        raise UnsupportedModelError(
            f"found no feed-forward network in {type(model).__name__}; expected linear maps d -> f and f -> d (plain), "
            f"two d -> f and f -> d (gated), d -> 2f and f -> d (fused) inside one module, an nn.Sequential of Linears, or "
            "a module that applies one Linear after the other to its features; and no other parameter (such as a norm) of the "
            f"size of the hidden neurons. {_inventory(linears)} Name the Linears explicitly with structure_dict="
        )
    check_not_tied(model, ffns)
    up_first: dict[tuple[object, ...], bool] = {}
    for position, ffn in enumerate(ffns):
        # One FFN is checked for each class and each combination of its settings, because a setting can change what a class
        # computes: some FFNs of Gemma 3n keep only the largest neurons of each token.
        module = ffn.stages[0][0].owner if isinstance(ffn.module, Expert) else ffn.module
        settings = (item for item in vars(module).items() if isinstance(item[1], (bool, int, float, str)))
        class_and_settings = (type(module), ffn.kind, *settings)
        if class_and_settings not in up_first:
            check_neurons_separate(ffn, getattr(getattr(model, "config", None), "hidden_size", None))
            up_first[class_and_settings] = _begins_with_up(ffn)
        if up_first[class_and_settings]:
            ffns[position] = replace(ffn, stages=(ffn.stages[0][::-1], *ffn.stages[1:]))
    return FFNs(ffns)


def _ffns_at(name: str, found: Mapping[str, FFN], mixtures: Mapping[str, Mixture], config: Any) -> list[FFN]:
    """Return the FFN of the module at the path `name`, or the experts that this module holds; none if it holds neither."""
    mixture = mixtures.get(name)
    if mixture is not None and isinstance(mixture.experts, RoutedExperts):
        return [_expert_ffn(mixture, k, expert) for k, expert in enumerate(mixture.experts)]
    ffn = found.get(name)
    if ffn is None:
        return []
    mixture_around = mixtures.get(name.rpartition(".")[0])
    if mixture_around is not None and mixture_around.is_expert(ffn.module):
        return [replace(ffn, mixture=mixture_around, pruned_with_experts=True)]
    # An FFN in the block of a mixture, but not among the experts, is a shared expert.
    beside = [m for m in mixtures.values() if name.startswith(_prefix(m.block)) and _block_path(m.block) != m.block]
    if not beside:
        return [ffn]
    mixture, width = beside[0], ffn.sizes[1]
    fields = {} if config is None else vars(config)
    # Without a field for its own width, the width of a shared expert follows from the field for the width of the experts.
    shared_widths = [value for key, value in fields.items() if "shared" in key and isinstance(value, int)]
    is_multiple = width % mixture.experts.n_hidden == 0
    return [replace(ffn, mixture=mixture, pruned_with_experts=is_multiple and width not in shared_widths)]


def _modules_of(ffn: FFN) -> list[nn.Module]:
    return [linear_map.module for stage in ffn.stages for linear_map in stage]


def _expert_ffn(mixture: Mixture, position: int, expert: Expert) -> FFN:
    name = f"{mixture.name}.{position}"
    maps = {part: LinearMap.whole(f"{name}.{part}_proj", expert_map) for part, expert_map in expert.maps.items()}
    *inputs, output = maps.values()
    kind: FFNKind = "gated" if len(inputs) == 2 else "plain"
    return FFN(
        name, kind, (tuple(inputs), (output,)), _stack_path(mixture.name), expert, mixture, pruned_with_experts=True
    )


def _prefix(path: str) -> str:
    return f"{path}." if path else ""


def _deepest_first(path: str) -> int:
    return -path.count(".") - bool(path)


def _attention_prefixes(modules: Mapping[str, nn.Module], linears: Mapping[str, nn.Module]) -> tuple[str, ...]:
    """Return the path prefixes of attention modules, and of single linear maps that belong to an attention."""
    found = [_prefix(path) for path in linears if ATTENTION.search(path.rpartition(".")[2])]
    owned: dict[str, list[str]] = {}
    for path in linears:
        if _prefix(path) not in found:
            owned.setdefault(path.rpartition(".")[0], []).append(path)
    for owner, paths in owned.items():
        computes_queries = any(QUERIES.search(path.rpartition(".")[2]) for path in paths)
        is_named = ATTENTION.search(owner.rpartition(".")[2]) or ATTENTION.search(type(modules[owner]).__name__)
        if computes_queries or (
            is_named and _ffn_by_shapes(owner, modules[owner], [(path, linears[path]) for path in paths]) is None
        ):
            # A block may hold the maps of its attention directly, next to its FFN.
            found += map(_prefix, paths if _block_path(owner) == owner else [owner])
    for name in sorted(modules, key=_deepest_first):
        known, prefix = tuple(found), _prefix(name)
        if not prefix.startswith(known) and any(path.startswith(prefix) for path in known):
            inside = [path for path in linears if path.startswith(prefix)]
            # A module around an attention belongs to it if it holds at most one more linear map: in BERT the output map of the
            # attention, in T5 none.
            if name and sum(not _prefix(path).startswith(known) for path in inside) < 2:
                found.append(prefix)
    return tuple(found)


def _without_bottlenecks(ffns: list[FFN]) -> list[FFN]:
    """Leave out FFNs that are narrower than the residual stream (adapters), and FFNs without an activation function.

    An FFN is left out only if its block holds another FFN that is neither narrow nor linear.
    """

    def is_narrow(ffn: FFN) -> bool:
        return max(ffn.sizes[1:-1]) < ffn.sizes[0] and ffn.mixture is None

    def is_linear_term(ffn: FFN) -> bool:
        # Gemma 3n adds the output of two linear maps, without an activation function between them, to its attention.
        return (
            ffn.kind == "plain"
            and not ffn.is_routed
            and reads_unchanged(ffn.module, ffn.stages[0][0].module, ffn.stages[1][0].module)
        )

    several = Counter(_block_path(ffn.name) for ffn in ffns)
    left_out = {
        ffn.name for ffn in ffns if several[_block_path(ffn.name)] > 1 and (is_narrow(ffn) or is_linear_term(ffn))
    }
    others = {_block_path(ffn.name) for ffn in ffns if ffn.name not in left_out}
    return [ffn for ffn in ffns if not (ffn.name in left_out and _block_path(ffn.name) in others)]


def _block_path(name: str) -> str:
    """Return the path of the block that a module lies in: its path up to the first number in it; without a number, all of it."""
    stack = _stack_path(name)
    index = name.removeprefix(_prefix(stack)).split(".")[0]
    return name if stack == name else f"{_prefix(stack)}{index}"


def _stack_path(name: str) -> str:
    """Return the path of the stack that a module lies in: its path before the first number in it; without a number, all of it."""
    parts = name.split(".")
    for position, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[:position])
    return name


def _output_map_last(module: nn.Module, linears: list[tuple[str, nn.Module]]) -> list[tuple[str, nn.Module]]:
    """Put the output map last: the shapes tell which map it is, else a trial run, else the order in which maps are registered."""
    sizes = [(in_features(linear), out_features(linear)) for _, linear in linears]
    # The output map is (n_in -> n_out). In a gated FFN two other maps are (n_out -> n_in), in a fused FFN one is
    # (n_out -> 2 n_in).
    found = [
        k
        for k, (n_in, n_out) in enumerate(sizes)
        if (sizes.count((n_out, n_in)) == 2 and n_in != n_out) or sizes.count((n_out, 2 * n_in)) == 1
    ]
    if len(found) == 1:
        k = found[0]
        return [*linears[:k], *linears[k + 1 :], linears[k]]
    by_name = dict(linears)
    return [(path, by_name[path]) for path in linear_chain(module, by_name, check_neurons=False) or by_name]


def _ffn_by_shapes(name: str, module: nn.Module, linears: list[tuple[str, nn.Module]]) -> FFN | None:
    """Return the plain, gated or fused FFN that these linear maps form, or None."""
    if len(linears) not in (2, 3) or isinstance(module, nn.Sequential):
        return None
    *ups, (down_name, down) = _output_map_last(module, linears)
    width, d_model = in_features(down), out_features(down)
    if any(in_features(up) != d_model for _, up in ups):
        return None
    widths = [out_features(up) for _, up in ups]
    output = (LinearMap.whole(down_name, down),)
    if widths in ([width], [width, width]):
        stage = tuple(LinearMap.whole(path, up) for path, up in ups)
        return FFN(name, "plain" if len(ups) == 1 else "gated", (stage, output), _stack_path(name), module)
    if widths == [2 * width]:
        path, up = ups[0]
        halves = (LinearMap(path, up, 0, width), LinearMap(path, up, width, width))
        return FFN(name, "fused", (halves, output), _stack_path(name), module)
    return None


def _begins_with_up(ffn: FFN) -> bool:
    """Whether a trial run shows that the first of two input maps is the up map, and the second the gate."""
    if ffn.kind not in ("gated", "fused") or isinstance(ffn.module, Expert):
        return False  # the maps of an expert are in order: their layout names them
    down = ffn.stages[1][0].module
    first, second = (
        is_odd_in(ffn.module, linear_map.module, slice(linear_map.start, linear_map.start + linear_map.size), down)
        for linear_map in ffn.stages[0]
    )
    return first and not second


def _gated_maps(name: str, linears: list[tuple[str, nn.Module]]) -> list[tuple[str, nn.Module]]:
    """Return the three maps of a gated FFN, if the module at `name` holds them directly, beside others such as a router.

    The result is empty if it is unclear which maps they are.
    """
    sizes = [(in_features(linear), out_features(linear)) for _, linear in linears]
    outputs = {(n_in, n_out) for n_in, n_out in sizes if sizes.count((n_out, n_in)) == 2 and n_in != n_out}
    if len(outputs) != 1 or any(path.rpartition(".")[0] != name for path, _ in linears):
        return []
    ((width, d_model),) = outputs
    # No other map may read or compute the hidden neurons.
    found = [entry for entry, shape in zip(linears, sizes, strict=True) if width in shape]
    fits = all(sorted(shape) == sorted((width, d_model)) for shape in sizes if width in shape)
    return found if fits and len(found) == 3 else []


def _sequential_ffn(name: str, module: nn.Module, candidates: dict[str, nn.Module]) -> FFN | None:
    """Return the FFN that an nn.Sequential of Linears and pointwise functions forms, or None."""
    if not isinstance(module, nn.Sequential):
        return None
    stages: list[tuple[LinearMap, ...]] = []
    for child_name, child in module.named_children():
        path = f"{name}.{child_name}" if name else child_name
        if path in candidates:
            if stages and stages[-1][0].size != in_features(child):
                return None
            stages.append((LinearMap.whole(path, child),))
        elif not isinstance(child, POINTWISE if stages else (*POINTWISE, nn.Flatten)):
            return None
    return FFN(name, "sequential", tuple(stages), _stack_path(name), module) if len(stages) >= 2 else None


def _chain_ffns(
    modules: dict[str, nn.Module],
    linears: dict[str, nn.Module],
    candidates: dict[str, nn.Module],
    attention_prefixes: tuple[str, ...],
) -> list[FFN]:
    """Return the outermost modules that are chains of linear maps in a trial run."""
    found: list[FFN] = []
    for name, module in modules.items():
        inside = {path: linear for path, linear in linears.items() if path.startswith(_prefix(name))}
        is_nested = name.startswith(tuple(_prefix(ffn.name) for ffn in found))
        order = None if is_nested or not inside.keys() <= candidates.keys() else linear_chain(module, inside)
        if order is not None:
            stages = tuple((LinearMap.whole(path, linears[path]),) for path in order)
            ffn = FFN(name, "sequential", stages, _stack_path(name), module)
            if not parameter_of_neurons(ffn, attention_prefixes):
                found.append(ffn)
    return found


def _inventory(linears: dict[str, nn.Module]) -> str:
    """Describe the linear maps, counted by name pattern and shape, for an error message."""
    if not linears:
        return "The model has no linear maps."
    counts: Counter[str] = Counter()
    for name, module in linears.items():
        pattern = ".".join("*" if part.isdigit() else part for part in name.split("."))
        counts[f"{pattern} {in_features(module)} -> {out_features(module)}"] += 1
    listed = ", ".join(f"{count} x {entry}" for entry, count in list(counts.items())[:20])
    return f"Linear maps found: {listed}."
