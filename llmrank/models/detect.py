"""Find the FFNs of a model by the shapes of its linear maps, not by the model's name.

Inside a module, the linear maps that do not belong to attention are an FFN when they are exactly
d -> f, f -> d (plain), two d -> f and one f -> d (gated), or d -> 2f, f -> d (fused). An
``nn.Sequential`` of Linears with pointwise functions between them is a sequential one. What was found
is probed: silencing neuron j before the activation must change input j of the output map alone.

An attention is recognised by the linear maps that a module itself owns (one that makes queries), and its output map by
its place: the only other map of the smallest module around it. The name of a whole block says nothing.

Where nothing was found, a module of any code may still be a chain of linear maps, a multilayer perceptron: a trial
run shows it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from llmrank.errors import UnsupportedModelError
from llmrank.models.ffn import FFN, Projection, in_features, out_features
from llmrank.models.tracing import linear_chain, undisturbed

__all__ = ["find_ffns"]

# Between the Linears of a sequential FFN: functions that act on every neuron by itself.
POINTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.ELU, nn.SELU, nn.CELU, nn.LeakyReLU, nn.Mish),
    *(nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Tanhshrink),
    *(nn.Dropout, nn.AlphaDropout, nn.Identity),
)
# Linear maps that make queries, alone or together with keys and values: q_proj, to_q, Wqkv, query_key_value, in_proj_qkvz.
QUERIES = re.compile(r"(^|_)w?(q|qkv|qkvz|query)(_|$)", re.IGNORECASE)
ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def find_ffns(model: nn.Module) -> tuple[FFN, ...]:
    """Find every FFN of a model, in the order of its modules.

    Parameters
    ----------
    model : nn.Module
        A transformers model or any torch module.

    Returns
    -------
    tuple of FFN
        Each module once, also where it is shared.

    Raises
    ------
    UnsupportedModelError
        Mixture of experts, quantised weights, weights shared between different FFNs, or nothing that
        has the geometry of an FFN; the message lists what was found.

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
    free = {name: module for name, module in linears.items() if not _prefix(name).startswith(attention)}
    claimed: set[str] = set()
    found: dict[str, FFN] = {}
    # Deepest first: the smallest module that holds the whole FFN names it.
    for name in sorted(modules, key=_deepest_first):
        module = modules[name]
        inside = [path for path in free if path not in claimed and path.startswith(_prefix(name))]
        if len(inside) < 2:
            continue
        ffn = _sequential(name, module, free) or _block(name, module, [(path, free[path]) for path in inside])
        if ffn is not None:
            found[name] = ffn
            claimed.update(projection.name for stage in ffn.stages for projection in stage)
    ffns = [found[name] for name in modules if name in found]
    stacked = [ffn for ffn in ffns if ffn.stack != ffn.name]
    # Where there is a repeating stack, look-alikes outside it (prediction heads) are not FFNs.
    ffns = _without_bottlenecks([ffn for ffn in (stacked or ffns) if _is_separable(ffn, attention)])
    ffns = ffns or _chains(modules, linears, free, attention)
    if not ffns:
        raise UnsupportedModelError(
            f"found no feed-forward network in {type(model).__name__}; expected linear maps d -> f and f -> d (plain), "
            f"two d -> f and f -> d (gated), d -> 2f and f -> d (fused) inside one module, an nn.Sequential of Linears, or "
            f"a module that takes features through one Linear after the other. {_inventory(linears)} Name the Linears "
            "explicitly with structure_dict="
        )
    check_not_tied(model, ffns)
    probed: set[tuple[type[nn.Module], str]] = set()
    for ffn in ffns:
        kind = (type(ffn.module), ffn.kind)
        if kind not in probed:
            probed.add(kind)
            _probe(ffn)
    return tuple(ffns)


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear map with a two-dimensional weight, quantised or not."""
    if isinstance(getattr(module, "qweight", None), torch.Tensor):
        return True
    weight = getattr(module, "weight", None)
    known = isinstance(module, (nn.Linear, Conv1D)) or type(module).__name__.lower().startswith("linear")
    return known and isinstance(weight, torch.Tensor)


def _prefix(path: str) -> str:
    """What the paths of a module and of all inside it begin with, once they end with a dot."""
    return f"{path}." if path else ""


def _deepest_first(path: str) -> int:
    return -path.count(".") - bool(path)


def _attentions(modules: Mapping[str, nn.Module], linears: Mapping[str, nn.Module]) -> tuple[str, ...]:
    """Prefixes of the modules that are attentions, and of single linear maps that belong to one."""
    found = [_prefix(path) for path in linears if ATTENTION.search(path.rpartition(".")[2])]
    owned: dict[str, list[str]] = {}
    for path in linears:
        if _prefix(path) not in found:
            owned.setdefault(path.rpartition(".")[0], []).append(path)
    for owner, paths in owned.items():
        queries = any(QUERIES.search(path.rpartition(".")[2]) for path in paths)
        called = ATTENTION.search(owner.rpartition(".")[2]) or ATTENTION.search(type(modules[owner]).__name__)
        # Maps that make no queries by their names (one for all three, say) go by that of their module, unless they are an FFN.
        if queries or (called and _block(owner, modules[owner], [(path, linears[path]) for path in paths]) is None):
            # A block may hold the maps of its attention itself, beside its FFN.
            found += map(_prefix, paths if _block_of(owner) == owner else [owner])
    for name in sorted(modules, key=_deepest_first):
        known, prefix = tuple(found), _prefix(name)
        if not prefix.startswith(known) and any(path.startswith(prefix) for path in known):
            inside = [path for path in linears if path.startswith(prefix)]
            # The output map, where the attention's own module does not hold it (BERT); or no other map at all (T5).
            if name and sum(not _prefix(path).startswith(known) for path in inside) < 2:
                found.append(prefix)
    return tuple(found)


def _without_bottlenecks(ffns: list[FFN]) -> list[FFN]:
    """Leave out maps through fewer neurons than the stream has, beside a wider FFN of the same block.

    They are low-rank terms and adapters (Gemma 3n's LAuReL, X-MOD's language adapters), whose width is another setting of
    the model than the FFN's.
    """

    def narrow(ffn: FFN) -> bool:
        return max(ffn.sizes[1:-1]) < ffn.sizes[0]

    wide = {_block_of(ffn.name) for ffn in ffns if not narrow(ffn)}
    return [ffn for ffn in ffns if not (narrow(ffn) and _block_of(ffn.name) in wide)]


def _block_of(name: str) -> str:
    """Path of the block of a stack: everything up to the first index; the name itself without one."""
    stack = stack_of(name)
    return name if stack == name else ".".join(name.split(".")[: stack.count(".") + 1 + bool(stack)])


def check_not_wrapped(model: nn.Module) -> None:
    """Raise for models whose modules wrap others: adapters of PEFT, and compiled modules."""
    for path, module in model.named_modules():
        of = f"{path} of {type(model).__name__}" if path else type(model).__name__
        if hasattr(module, "base_layer") and hasattr(module, "merge"):
            raise UnsupportedModelError(
                f"{of} is wrapped by adapters ({type(module).__name__} around a {type(module.base_layer).__name__}, as peft "
                "does it); expected the model's own linear maps: merge the adapters with model = model.merge_and_unload(), "
                "and prune what that returns"
            )
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise UnsupportedModelError(
                f"{of} is compiled (torch.compile), and compiled code does not run the functions that repair substitutes for "
                "linear maps; expected a model that is not compiled: prune the model first (a compiled module holds it as "
                "_orig_mod), and compile the pruned one"
            )


def check_weights_finite(model: nn.Module) -> None:
    """Raise if a parameter holds NaN or Inf; the message names it. Reads every weight once, and copies none."""
    if any(parameter.is_meta for parameter in model.parameters()):
        return  # it is being built, and what is not on the meta device holds nothing yet either
    for name, parameter in model.named_parameters():
        values = parameter.detach()
        if values.is_meta or not values.is_floating_point() or values.dtype.itemsize < 2 or not values.numel():
            continue
        if not all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(values)):
            bad = (~torch.isfinite(values)).nonzero()
            raise UnsupportedModelError(
                f"{name} of {type(model).__name__} holds NaN or Inf in {len(bad)} of {values.numel()} places, first at "
                f"{bad[0].tolist()}; expected finite weights: fetch the model again, or load it in float32 or bfloat16 if "
                "float16 overflowed"
            )


def check_no_experts(model: nn.Module) -> None:
    """Raise for mixture-of-experts models."""
    config = getattr(model, "config", None)
    counts = [name for name in EXPERT_COUNTS if (getattr(config, name, None) or 0) > 1]
    modules = [
        f"{path} ({type(module).__name__})"
        for path, module in model.named_modules()
        if path.rsplit(".", 1)[-1] in ("experts", "block_sparse_moe") or "experts" in type(module).__name__.lower()
    ]
    if modules or (counts and any("moe" in type(module).__name__.lower() for module in model.modules())):
        what = modules[0] if modules else f"config.{counts[0]}"
        raise UnsupportedModelError(
            f"{type(model).__name__} is a mixture-of-experts model ({what}); expert FFNs cannot be pruned yet: "
            "choose a dense model, or name its dense Linears with structure_dict="
        )


def check_not_quantised(model: nn.Module, linears: dict[str, nn.Module]) -> None:
    """Raise if a linear map holds packed, integer or wrapped weights, which cannot be cut row by row."""
    for name, module in linears.items():
        weight: object = getattr(module, "qweight", None)
        packed = isinstance(weight, torch.Tensor)
        if not packed:
            weight = module.weight
        # Quantisers and sharding hide behind tensor subclasses that report a float dtype.
        plain = isinstance(module, (nn.Linear, Conv1D)) and type(weight) in (torch.Tensor, nn.Parameter)
        dtype = weight.dtype if isinstance(weight, torch.Tensor) else None
        if packed or not plain or dtype is None or not dtype.is_floating_point or dtype.itemsize < 2:
            raise UnsupportedModelError(
                f"{name} of {type(model).__name__} holds quantised or wrapped weights ({type(module).__name__}, "
                f"{type(weight).__name__} of {dtype}); they cannot be pruned in place: load the model in float32, "
                "float16 or bfloat16 (dequantised, on one device), and quantise the pruned one"
            )


def check_not_tied(model: nn.Module, ffns: Iterable[FFN]) -> None:
    """Raise if a linear map of the FFNs shares a parameter with any other module of the model."""
    inside = {id(p.module): p.name for ffn in ffns for stage in ffn.stages for p in stage}
    owner: dict[int, str] = {}
    ours: set[int] = set()
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is None:
                continue
            key = id(parameter)
            if key in owner and (id(module) in inside or key in ours):
                raise UnsupportedModelError(
                    f"{owner[key]} and {name} share one weight; pruning one would change the other: untie them (copy "
                    "the parameter) first"
                )
            owner.setdefault(key, name)
            if id(module) in inside:
                ours.add(key)


def stack_of(name: str) -> str:
    """Path of the repeating stack: everything before the first index; the name itself without one."""
    parts = name.split(".")
    for position, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[:position])
    return name


def _output_map_last(linears: list[tuple[str, nn.Module]]) -> list[tuple[str, nn.Module]]:
    """Linear maps with the output map last: of three the one that is the reverse of both others, else as they are defined."""
    sizes = [(in_features(linear), out_features(linear)) for _, linear in linears]
    odd = [k for k, (read, given) in enumerate(sizes) if sizes.count((given, read)) == 2 and read != given]
    return [*linears[: odd[0]], *linears[odd[0] + 1 :], linears[odd[0]]] if len(odd) == 1 else linears


def _block(name: str, module: nn.Module, linears: list[tuple[str, nn.Module]]) -> FFN | None:
    """The plain, gated or fused FFN that these linear maps are, or None."""
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
        return FFN(name, "plain" if len(ups) == 1 else "gated", (stage, output), stack_of(name), module)
    if widths == [2 * width]:
        path, up = ups[0]
        halves = (Projection(path, up, 0, width), Projection(path, up, width, width))
        return FFN(name, "fused", (halves, output), stack_of(name), module)
    return None


def _sequential(name: str, module: nn.Module, free: dict[str, nn.Module]) -> FFN | None:
    """The FFN that an nn.Sequential of Linears and pointwise functions is, or None."""
    if not isinstance(module, nn.Sequential):
        return None
    stages: list[tuple[Projection, ...]] = []
    for child_name, child in module.named_children():
        path = f"{name}.{child_name}" if name else child_name
        if path in free:
            if stages and stages[-1][0].size != in_features(child):
                return None
            stages.append((Projection.whole(path, child),))
        elif not isinstance(child, (*POINTWISE, nn.Flatten)) or (stages and isinstance(child, nn.Flatten)):
            return None
    return FFN(name, "sequential", tuple(stages), stack_of(name), module) if len(stages) >= 2 else None


def _chains(
    modules: dict[str, nn.Module], linears: dict[str, nn.Module], free: dict[str, nn.Module], attention: tuple[str, ...]
) -> list[FFN]:
    """The modules that are chains of linear maps, the largest that run by themselves; none of them inside another."""
    found: list[FFN] = []
    for name, module in modules.items():
        inside = {path: linear for path, linear in linears.items() if not name or path.startswith(f"{name}.")}
        nested = any(not ffn.name or name.startswith(f"{ffn.name}.") for ffn in found)
        order = None if nested or not set(inside) <= set(free) else linear_chain(module, inside)
        if order is not None:
            stages = tuple((Projection.whole(path, linears[path]),) for path in order)
            ffn = FFN(name, "sequential", stages, stack_of(name), module)
            found += [ffn] if _is_separable(ffn, attention) else []
    return found


def _is_separable(ffn: FFN, attention: tuple[str, ...]) -> bool:
    """No other parameter lives on the hidden neurons (a norm between the maps would couple them)."""
    own = {id(p) for stage in ffn.stages for projection in stage for p in projection.module.parameters()}
    hidden = set(ffn.sizes[1:-1])
    stream = {ffn.sizes[0], ffn.sizes[-1]}
    for owner, module in ffn.module.named_modules(prefix=ffn.name):
        for parameter in () if _prefix(owner).startswith(attention) else module.parameters(recurse=False):
            # A vector as wide as the stream may be one of its norms; a convolution or a recurrence works on the neurons.
            vector = parameter.ndim < 2 or is_linear(module)
            if id(parameter) not in own and (hidden - stream if vector else hidden) & set(parameter.shape):
                return False
    return True


def _probe(ffn: FFN) -> None:
    """Silence one neuron in its producers and see that only its own input of the consumer changes."""
    device = ffn.stages[0][0].weight.device
    if ffn.kind == "explicit" or device.type == "meta":
        return
    neuron = 1 if ffn.sizes[1] > 1 else 0
    producers, consumer = ffn.stages[0], ffn.stages[1][0].module
    seen: list[torch.Tensor] = []

    def silence(projection: Projection):  # type: ignore[no-untyped-def]
        def hook(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
            output = output.clone()
            output[..., projection.start + neuron] += 3.0
            return output

        return hook

    handles = [consumer.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].detach().float()))]
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(1, 2, ffn.sizes[0], generator=generator).to(device, ffn.stages[0][0].weight.dtype)
    try:
        with undisturbed(ffn.module):
            ffn.module(probe)
            handles += [projection.module.register_forward_hook(silence(projection)) for projection in producers]
            ffn.module(probe)
    except Exception:  # a decoder layer needs more than one tensor: its FFN is plain, and geometry is enough
        return
    finally:
        for handle in handles:
            handle.remove()
    if len(seen) != 2 or seen[0].shape != seen[1].shape or seen[0].shape[-1] != ffn.sizes[1]:
        return
    changed = (seen[0] != seen[1]).reshape(-1, ffn.sizes[1]).any(0)
    changed[neuron] = False
    if changed.any():
        other = int(changed.nonzero()[0])
        raise UnsupportedModelError(
            f"{ffn.name} ({type(ffn.module).__name__}) has the shapes of a {ffn.kind} FFN, but its hidden neurons "
            f"{neuron} and {other} are not separate (a norm or an interleaved layout between the maps): it cannot be "
            "pruned by hidden neuron; use structure_dict= to prune rows of named Linears"
        )


def _inventory(linears: dict[str, nn.Module]) -> str:
    shapes: dict[str, int] = {}
    for name, module in linears.items():
        pattern = ".".join("*" if part.isdigit() else part for part in name.split("."))
        key = f"{pattern} {in_features(module)} -> {out_features(module)}"
        shapes[key] = shapes.get(key, 0) + 1
    if not shapes:
        return "The model has no linear maps."
    listed = ", ".join(f"{count} x {key}" for key, count in list(shapes.items())[:20])
    return f"Linear maps found: {listed}."
