"""Leave out blocks of a model: its configuration states fewer, and the numbers of the others follow.

Which numbers of blocks and fields of configurations depend on the depth differs between families. So they are read from a model
without data that is built from the configuration with fewer blocks, and must agree with it in all else.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from llmrank.errors import UnsupportedModelError
from llmrank.models import FFNs
from llmrank.models.blocks import Block
from llmrank.models.configured import can_be_stated, configured
from llmrank.models.families import text_config

__all__ = ["ShallowModel", "with_statable_blocks"]

# Lists of a configuration that may have as many entries by chance.
NOT_BY_BLOCK = ("architectures", "bos_token_id", "eos_token_id", "pad_token_id")
# Types of attributes that two modules have in common if they compute the same.
SIMPLE = (bool, int, float, str, tuple, type(None))


@dataclass(frozen=True)
class ShallowModel:
    """How a model without some of its blocks is stated.

    Attributes
    ----------
    stack : nn.ModuleList
        The list of all blocks.
    kept : tuple of int
        The positions of the blocks that stay.
    fields : dict from str to value
        Fields of the configuration.
    numbers : tuple of (nn.Module, str, int)
        Modules of blocks that stay, with an attribute and its new value.
    """

    stack: nn.ModuleList
    kept: tuple[int, ...]
    fields: dict[str, Any]
    numbers: tuple[tuple[nn.Module, str, int], ...]

    @classmethod
    def of(cls, model: nn.Module, left_out: Collection[Block]) -> ShallowModel:
        """Find out how a model without these blocks of one stack is stated.

        Raises
        ------
        UnsupportedModelError
            No configuration states that model.
        """
        stack, config = next(iter(left_out)).stack, text_config(model)
        gone = {id(block.module) for block in left_out}
        kept = tuple(k for k, module in enumerate(stack) if id(module) not in gone)
        # Lists with one entry for each block, such as layer_types.
        lists = {
            name: type(value)(value[k] for k in kept)
            for name, value in vars(config).items()
            if isinstance(value, (list, tuple)) and len(value) == len(stack) and name not in NOT_BY_BLOCK
        }
        # Bart's decoder has a field of its own, decoder_layers.
        depths = [name for name, value in vars(config).items() if value == len(stack) and "layers" in name]
        found, path = None, _path(model, stack)
        for depth in dict.fromkeys(("num_hidden_layers", *depths)):
            fields = {**lists, depth: len(kept)}
            built = configured(model, fields) if can_be_stated(model, fields) else None
            found = None if built is None else _numbers(model, built, path, kept)
            if found is not None:
                break
        # A hybrid needs a block of each kind, for its cache and its masks.
        if any(set(kinds) < set(getattr(config, name)) for name, kinds in lists.items() if isinstance(kinds[0], str)):
            found = None
        if found is None:
            listed = ", ".join(block.name for block in left_out)
            raise UnsupportedModelError(
                f"{listed} cannot be left out: the configuration of {type(model).__name__} cannot state the other "
                f"{len(kept)} of {len(stack)} blocks as they are (num_hidden_layers, and lists such as layer_types, of which "
                "each kind must stay); leave blocks out of the targets, or protect these"
            )
        return cls(stack, kept, fields, tuple(found))

    def write(self, config: Any) -> None:
        """Remove the blocks from their stack, and give modules and the configuration their new values."""
        modules = list(self.stack)
        self.stack._modules.clear()
        self.stack.extend(modules[k] for k in self.kept)
        for module, name, value in self.numbers:
            setattr(module, name, value)
        for name, value in self.fields.items():
            setattr(config, name, value)

    def new_paths(self, model: nn.Module) -> dict[str, str | None]:
        """Return the paths that the blocks will have, by their present ones; None if they are left out."""
        path = _path(model, self.stack)
        numbers = {old: new for new, old in enumerate(self.kept)}
        return {f"{path}.{old}": f"{path}.{numbers[old]}" if old in numbers else None for old in range(len(self.stack))}


def with_statable_blocks(model: nn.Module, ffns: FFNs) -> FFNs:
    """Return the FFNs without blocks that must stay, because no configuration states the model without a block of their kind.

    Raises
    ------
    UnsupportedModelError
        All blocks must stay.
    """
    kinds: dict[str, list[Block]] = {}
    for block in ffns.blocks:
        parts = block.module.named_modules()
        kinds.setdefault(repr([(path, type(part), _attributes(part)) for path, part in parts]), []).append(block)
    stay: list[Block] = []
    refusal: UnsupportedModelError | None = None
    for blocks in kinds.values():
        try:
            # Without the first, the others of its kind have other positions, by which a configuration may tell kinds apart.
            for block in dict.fromkeys((blocks[0], blocks[-1])):
                ShallowModel.of(model, [block])
        except UnsupportedModelError as error:  # noqa: PERF203 -- the other kinds are tried all the same
            refusal, stay = error, stay + blocks
    if refusal is not None and len(stay) == len(ffns.blocks):
        raise refusal
    return FFNs(replace(ffn, whole_block=None) if ffn.whole_block in stay else ffn for ffn in ffns)


def _path(model: nn.Module, part: nn.Module) -> str:
    path: str = next(name for name, module in model.named_modules() if module is part)
    return path


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Return the plain attributes of a module that do not number it."""
    found = {name: value for name, value in vars(module).items() if isinstance(value, SIMPLE) and name != "training"}
    return {name: value for name, value in found.items() if name[0] != "_" and type(value) is not int}


def _numbers(
    model: nn.Module, built: nn.Module, path: str, kept: Sequence[int]
) -> list[tuple[nn.Module, str, int]] | None:
    """Return (module, attribute, value) for every number that depends on the depth, or on the position of a block that stays.

    `path` is that of the stack in both models. The result is None if the built model differs in anything else.
    """
    modules, n_blocks = dict(model.named_modules()), len(list(model.get_submodule(path).children()))
    found: list[tuple[nn.Module, str, int]] = []
    seen: set[str] = set()
    for name, then in built.named_modules():
        inside = name.startswith(f"{path}.")
        new = int(name[len(path) + 1 :].split(".")[0]) if inside else 0
        if new >= len(kept):  # the field is not the depth of this stack
            return None
        old_name = f"{path}.{kept[new]}{name[len(f'{path}.{new}') :]}" if inside else name
        now = modules.get(old_name)
        seen.add(old_name)
        if now is None or type(now).__name__ != type(then).__name__ or _shapes(now) != _shapes(then):
            return None
        if inside and _attributes(now) != _attributes(then):
            return None
        for key, value in vars(then).items():
            before = vars(now).get(key)
            if type(value) is int and type(before) is int and before != value:
                # A number of a block falls as its position does, and a number of blocks to that of those that stay.
                if before - value != kept[new] - new if inside else (before, value) != (n_blocks, len(kept)):
                    return None
                found.append((now, key, value))
    stay = {f"{path}.{k}" for k in kept}
    missing = {name for name in modules.keys() - seen if not name.startswith(f"{path}.")}
    missing |= {name for name in modules.keys() - seen if any(f"{name}.".startswith(f"{each}.") for each in stay)}
    return None if missing else found


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a module's own tensors that a checkpoint holds."""
    buffers = {n: b for n, b in module._buffers.items() if n not in module._non_persistent_buffers_set}
    return {n: tuple(tensor.shape) for n, tensor in (module._parameters | buffers).items() if tensor is not None}
