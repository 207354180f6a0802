"""Find the FFNs of a model by the shapes of its linear maps, not by the model's name.

The linear maps inside a module that do not belong to attention are an FFN if they are exactly
d -> f, f -> d (plain), two d -> f and one f -> d (gated), or d -> 2f, f -> d (fused). An
``nn.Sequential`` of Linears with pointwise functions between them is a sequential FFN. One FFN of each type
is tested: a change of neuron j before the activation function must change input j of the output map alone.

An attention is recognised by the names of the linear maps that a module itself owns (one of them makes queries). Its output
map is recognised by its place: it is the only other map of the smallest module around the attention. The name of a whole block
is not used.

If nothing was found, a module with any code may still be a chain of linear maps (a multilayer perceptron): a trial
run shows that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import nn

from llmrank.errors import UnsupportedModelError
from llmrank.models.checks import (
    check_no_experts,
    check_not_quantised,
    check_not_tied,
    check_not_wrapped,
    check_weights_finite,
)
from llmrank.models.ffn import FFN, FFNs, Projection
from llmrank.models.linear_map import in_features, is_linear_map, out_features
from llmrank.models.tracing import linear_chain, trial_run

__all__ = ["find_ffns", "is_linear"]

# Functions that act on every neuron by itself; these may lie between the Linears of a sequential FFN.
POINTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.ELU, nn.SELU, nn.CELU, nn.LeakyReLU, nn.Mish),
    *(nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Tanhshrink),
    *(nn.Dropout, nn.AlphaDropout, nn.Identity),
)
# Names of linear maps that make queries, alone or with keys and values: q_proj, to_q, Wqkv, query_key_value, in_proj_qkvz.
QUERIES = re.compile(r"(^|_)w?(q|qkv|qkvz|query)(_|$)", re.IGNORECASE)
ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)


def find_ffns(model: nn.Module) -> FFNs:
    """Find every FFN of a model, in the order of its modules.

    Parameters
    ----------
    model : nn.Module
        A transformers model or any torch module.

    Returns
    -------
    tuple of FFN
        Each module appears once, even if the model uses it in several places.

    Raises
    ------
    UnsupportedModelError
        The model is a mixture of experts, has quantised weights or weights that different FFNs share, or has nothing with the
        geometry of an FFN; the message lists the linear maps.

    Examples
    --------
    >>> mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    >>> [(ffn.kind, ffn.sizes, len(ffn.prunable)) for ffn in find_ffns(mlp)]
    [('sequential', (4, 8, 6, 2), 2)]
    """
    check_not_wrapped(model)
    check_no_experts(model)
    modules = dict(model.named_modules())
    linears = {name: module for name, module in modules.items() if is_linear(module)}
    check_not_quantised(model, linears)
    check_weights_finite(model)
    attention = _attentions(modules, linears)
    candidates = {name: module for name, module in linears.items() if not _prefix(name).startswith(attention)}
    claimed: set[str] = set()
    found: dict[str, FFN] = {}
    # Deepest first, so that the FFN gets the name of the smallest module that holds all of it.
    for name in sorted(modules, key=_deepest_first):
        module = modules[name]
        inside = [path for path in candidates if path not in claimed and path.startswith(_prefix(name))]
        if len(inside) < 2:
            continue
        ffn = _sequential_ffn(name, module, candidates)
        ffn = ffn or _ffn_by_shapes(name, module, [(path, candidates[path]) for path in inside])
        if ffn is not None:
            found[name] = ffn
            claimed.update(projection.name for stage in ffn.stages for projection in stage)
    ffns = [found[name] for name in modules if name in found]
    stacked = [ffn for ffn in ffns if ffn.stack != ffn.name]
    # If the model has a repeating stack, modules of the same shapes outside it (prediction heads) are not FFNs.
    ffns = _without_bottlenecks([ffn for ffn in (stacked or ffns) if _is_separable(ffn, attention)])
    ffns = ffns or _chain_ffns(modules, linears, candidates, attention)
    if not ffns:
        raise UnsupportedModelError(
            f"found no feed-forward network in {type(model).__name__}; expected linear maps d -> f and f -> d (plain), "
            f"two d -> f and f -> d (gated), d -> 2f and f -> d (fused) inside one module, an nn.Sequential of Linears, or "
            f"a module that applies one Linear after the other to its features. {_inventory(linears)} Name the Linears "
            "explicitly with structure_dict="
        )
    check_not_tied(model, ffns)
    checked: set[tuple[type[nn.Module], str]] = set()
    for ffn in ffns:
        type_and_kind = (type(ffn.module), ffn.kind)
        if type_and_kind not in checked:
            checked.add(type_and_kind)
            _check_neurons_separate(ffn)
    return FFNs(ffns)


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear map with a two-dimensional weight, quantised or not."""
    if isinstance(getattr(module, "qweight", None), torch.Tensor):
        return True
    weight = getattr(module, "weight", None)
    known = is_linear_map(module) or type(module).__name__.lower().startswith("linear")
    return known and isinstance(weight, torch.Tensor)


def _prefix(path: str) -> str:
    """Return the beginning that the paths of a module and its submodules have in common, if a dot is added to each path."""
    return f"{path}." if path else ""


def _deepest_first(path: str) -> int:
    """Sort key of module paths."""
    return -path.count(".") - bool(path)


def _attentions(modules: Mapping[str, nn.Module], linears: Mapping[str, nn.Module]) -> tuple[str, ...]:
    """Return the path prefixes of attention modules, and of single linear maps that belong to an attention."""
    found = [_prefix(path) for path in linears if ATTENTION.search(path.rpartition(".")[2])]
    owned: dict[str, list[str]] = {}
    for path in linears:
        if _prefix(path) not in found:
            owned.setdefault(path.rpartition(".")[0], []).append(path)
    for owner, paths in owned.items():
        queries = any(QUERIES.search(path.rpartition(".")[2]) for path in paths)
        named = ATTENTION.search(owner.rpartition(".")[2]) or ATTENTION.search(type(modules[owner]).__name__)
        # If no name tells of queries (one map may make queries, keys and values), the module's name decides, unless the maps
        # have the shapes of an FFN.
        if queries or (
            named and _ffn_by_shapes(owner, modules[owner], [(path, linears[path]) for path in paths]) is None
        ):
            # A block may hold the maps of its attention directly, next to its FFN.
            found += map(_prefix, paths if _block_path(owner) == owner else [owner])
    for name in sorted(modules, key=_deepest_first):
        known, prefix = tuple(found), _prefix(name)
        if not prefix.startswith(known) and any(path.startswith(prefix) for path in known):
            inside = [path for path in linears if path.startswith(prefix)]
            # The one other map is the output map, which the attention's own module does not hold (BERT); T5 has no other map.
            if name and sum(not _prefix(path).startswith(known) for path in inside) < 2:
                found.append(prefix)
    return tuple(found)


def _without_bottlenecks(ffns: list[FFN]) -> list[FFN]:
    """Leave out FFNs that are narrower than the residual stream, if the same block has a wider FFN.

    They are low-rank terms and adapters (Gemma 3n's LAuReL, X-MOD's language adapters), whose width is not the FFN width of
    the configuration.
    """

    def is_narrow(ffn: FFN) -> bool:
        return max(ffn.sizes[1:-1]) < ffn.sizes[0]

    wide = {_block_path(ffn.name) for ffn in ffns if not is_narrow(ffn)}
    return [ffn for ffn in ffns if not (is_narrow(ffn) and _block_path(ffn.name) in wide)]


def _block_path(name: str) -> str:
    """Return the path of the block that a module lies in: the name up to its first index, or all of it without an index."""
    stack = _stack_path(name)
    return name if stack == name else ".".join(name.split(".")[: stack.count(".") + 1 + bool(stack)])


def _stack_path(name: str) -> str:
    """Return the path of the repeating stack that a module lies in: the name before its first index, or all of it."""
    parts = name.split(".")
    for position, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[:position])
    return name


def _output_map_last(linears: list[tuple[str, nn.Module]]) -> list[tuple[str, nn.Module]]:
    """Put the output map last: of three maps, it is the one whose shape is the reverse of both others; else keep the order."""
    sizes = [(in_features(linear), out_features(linear)) for _, linear in linears]
    reverse = [k for k, (n_in, n_out) in enumerate(sizes) if sizes.count((n_out, n_in)) == 2 and n_in != n_out]
    if len(reverse) != 1:
        return linears
    (k,) = reverse
    return [*linears[:k], *linears[k + 1 :], linears[k]]


def _ffn_by_shapes(name: str, module: nn.Module, linears: list[tuple[str, nn.Module]]) -> FFN | None:
    """Return the plain, gated or fused FFN that these linear maps form, or None."""
    if len(linears) not in (2, 3) or isinstance(module, nn.Sequential):
        return None
    *ups, (down_name, down) = _output_map_last(linears)
    width, d_model = in_features(down), out_features(down)
    if any(in_features(up) != d_model for _, up in ups):
        return None
    widths = [out_features(up) for _, up in ups]
    output = (Projection.whole(down_name, down),)
    if widths in ([width], [width, width]):
        stage = tuple(Projection.whole(path, up) for path, up in ups)
        return FFN(name, "plain" if len(ups) == 1 else "gated", (stage, output), _stack_path(name), module)
    if widths == [2 * width]:
        path, up = ups[0]
        halves = (Projection(path, up, 0, width), Projection(path, up, width, width))
        return FFN(name, "fused", (halves, output), _stack_path(name), module)
    return None


def _sequential_ffn(name: str, module: nn.Module, candidates: dict[str, nn.Module]) -> FFN | None:
    """Return the FFN that an nn.Sequential of Linears and pointwise functions forms, or None."""
    if not isinstance(module, nn.Sequential):
        return None
    stages: list[tuple[Projection, ...]] = []
    for child_name, child in module.named_children():
        path = f"{name}.{child_name}" if name else child_name
        if path in candidates:
            if stages and stages[-1][0].size != in_features(child):
                return None
            stages.append((Projection.whole(path, child),))
        elif not isinstance(child, (*POINTWISE, nn.Flatten)) or (stages and isinstance(child, nn.Flatten)):
            return None
    return FFN(name, "sequential", tuple(stages), _stack_path(name), module) if len(stages) >= 2 else None


def _chain_ffns(
    modules: dict[str, nn.Module],
    linears: dict[str, nn.Module],
    candidates: dict[str, nn.Module],
    attention: tuple[str, ...],
) -> list[FFN]:
    """Return the largest modules that are chains of linear maps and run by themselves; none lies inside another."""
    found: list[FFN] = []
    for name, module in modules.items():
        inside = {path: linear for path, linear in linears.items() if not name or path.startswith(f"{name}.")}
        nested = any(not ffn.name or name.startswith(f"{ffn.name}.") for ffn in found)
        order = None if nested or not set(inside) <= set(candidates) else linear_chain(module, inside)
        if order is not None:
            stages = tuple((Projection.whole(path, linears[path]),) for path in order)
            ffn = FFN(name, "sequential", stages, _stack_path(name), module)
            found += [ffn] if _is_separable(ffn, attention) else []
    return found


def _is_separable(ffn: FFN, attention: tuple[str, ...]) -> bool:
    """Whether no other parameter acts on the hidden neurons (a norm between the maps would couple them)."""
    own = {id(p) for stage in ffn.stages for projection in stage for p in projection.module.parameters()}
    hidden = set(ffn.sizes[1:-1])
    stream = {ffn.sizes[0], ffn.sizes[-1]}
    for owner, module in ffn.module.named_modules(prefix=ffn.name):
        for parameter in () if _prefix(owner).startswith(attention) else module.parameters(recurse=False):
            # A vector as wide as the residual stream may be a norm of the stream; a convolution or recurrence is on the neurons.
            vector = parameter.ndim < 2 or is_linear(module)
            if id(parameter) not in own and (hidden - stream if vector else hidden) & set(parameter.shape):
                return False
    return True


def _check_neurons_separate(ffn: FFN) -> None:
    """Change one neuron in the input maps, and raise an error if another input of the output map changes too."""
    device = ffn.stages[0][0].weight.device
    if ffn.kind == "explicit" or device.type == "meta":
        return
    neuron = 1 if ffn.sizes[1] > 1 else 0
    producers, consumer = ffn.stages[0], ffn.stages[1][0].module
    read: list[torch.Tensor] = []

    def shift(projection: Projection):  # type: ignore[no-untyped-def]
        def hook(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
            output = output.clone()
            output[..., projection.start + neuron] += 3.0
            return output

        return hook

    handles = [consumer.register_forward_pre_hook(lambda _module, inputs: read.append(inputs[0].detach().float()))]
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(1, 2, ffn.sizes[0], generator=generator).to(device, ffn.stages[0][0].weight.dtype)
    try:
        with trial_run(ffn.module):
            ffn.module(probe)
            handles += [projection.module.register_forward_hook(shift(projection)) for projection in producers]
            ffn.module(probe)
    except (
        Exception
    ):  # a whole transformer block needs more than one tensor; its FFN is plain, and the geometry is enough
        return
    finally:
        for handle in handles:
            handle.remove()
    if len(read) != 2 or read[0].shape != read[1].shape or read[0].shape[-1] != ffn.sizes[1]:
        return
    changed = (read[0] != read[1]).reshape(-1, ffn.sizes[1]).any(0)
    changed[neuron] = False
    if changed.any():
        other = int(changed.nonzero()[0])
        raise UnsupportedModelError(
            f"{ffn.name} ({type(ffn.module).__name__}) has the shapes of a {ffn.kind} FFN, but its hidden neurons "
            f"{neuron} and {other} are not separate (a norm or an interleaved layout between the maps): it cannot be "
            "pruned by hidden neuron; use structure_dict= to prune rows of named Linears"
        )


def _inventory(linears: dict[str, nn.Module]) -> str:
    """List the linear maps by name pattern and shape, for an error message."""
    shapes: dict[str, int] = {}
    for name, module in linears.items():
        pattern = ".".join("*" if part.isdigit() else part for part in name.split("."))
        key = f"{pattern} {in_features(module)} -> {out_features(module)}"
        shapes[key] = shapes.get(key, 0) + 1
    if not shapes:
        return "The model has no linear maps."
    listed = ", ".join(f"{count} x {key}" for key, count in list(shapes.items())[:20])
    return f"Linear maps found: {listed}."
