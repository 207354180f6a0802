"""The blocks of a model in one list, and how the model is stated without some of them.

Which numbers of blocks and fields of configurations depend on the depth differs between families. So they are read from two
models without data: one that is built from the configuration as it is, and one with fewer blocks, which must agree in all else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from torch import nn

from llmrank.errors import MaskError, UnsupportedModelError
from llmrank.models.blocks import TransformerBlock
from llmrank.models.configured import can_be_stated, configured
from llmrank.models.families import text_config
from llmrank.models.ffn import FFNs

__all__ = ["ShallowModel", "Stack", "with_statable_blocks"]

# Lists of a configuration that may have as many entries as there are blocks by chance.
NOT_BY_BLOCK = ("architectures", "bos_token_id", "eos_token_id", "pad_token_id")
# Types of attributes that two modules have in common if they compute the same.
SIMPLE = (bool, int, float, str, tuple, type(None))


class _Differs(Exception):  # noqa: N818 -- no error: another way to state the model may do
    """Raised with the part in which a built model differs."""


@dataclass(frozen=True)
class ShallowModel:
    """How a model without some of its blocks is stated.

    Attributes
    ----------
    path : str
        Path of the list of all blocks.
    stack : nn.ModuleList
        That list.
    kept : tuple of int
        The positions of the blocks that stay.
    fields : dict from str to value
        Fields of the configuration.
    numbers : tuple of (nn.Module, str, int or list)
        Modules with an attribute and its new value.
    """

    path: str
    stack: nn.ModuleList
    kept: tuple[int, ...]
    fields: dict[str, Any]
    numbers: tuple[tuple[nn.Module, str, Any], ...]

    def write(self, config: Any) -> None:
        """Remove the blocks from their stack, and give modules and the configuration their new values."""
        modules = list(self.stack)
        self.stack._modules.clear()
        self.stack.extend(modules[k] for k in self.kept)
        for module, name, value in self.numbers:
            setattr(module, name, value)
        for name, value in self.fields.items():
            setattr(config, name, value)

    @property
    def new_paths(self) -> dict[str, str | None]:
        """The paths that the blocks will have, by their present ones; None if they are left out."""
        numbers = {old: new for new, old in enumerate(self.kept)}
        return {
            f"{self.path}.{old}": f"{self.path}.{numbers[old]}" if old in numbers else None
            for old in range(len(self.stack))
        }


class Stack:
    """The blocks of a model in one list.

    Parameters
    ----------
    model : nn.Module
    stack : nn.ModuleList
        A part of the model.
    """

    def __init__(self, model: nn.Module, stack: nn.ModuleList) -> None:
        self._model, self._stack, self._config = model, stack, text_config(model)
        self._path: str = next(name for name, module in model.named_modules() if module is stack)
        self._dense = configured(model, {})

    def without(self, left_out: Collection[TransformerBlock]) -> ShallowModel:
        """Find out how the model without these blocks is stated.

        Raises
        ------
        UnsupportedModelError
            No configuration states that model.
        MaskError
            A block is not in the list any more.
        """
        staying = [block.name for block in left_out if block.stays]
        if staying:
            raise UnsupportedModelError(f"{', '.join(staying)} cannot be left out; protect these")
        gone = {id(block.module) for block in left_out}
        kept = tuple(k for k, module in enumerate(self._stack) if id(module) not in gone)
        if len(kept) + len(gone) != len(self._stack):
            raise MaskError(
                f"{', '.join(block.name for block in left_out)}: not all are in {self._path} now, because blocks were left out "
                "after they were found; undo that, or find them again"
            )
        differs = ""
        for fields in self._fields(kept):
            try:
                return ShallowModel(self._path, self._stack, kept, fields, tuple(self._numbers(fields, kept)))
            except _Differs as found:  # noqa: PERF203 -- the next fields are tried
                differs = str(found)
        raise UnsupportedModelError(
            f"{', '.join(block.name for block in left_out)} cannot be left out: the configuration of "
            f"{type(self._model).__name__} cannot state the other {len(kept)} of {len(self._stack)} blocks as they are "
            f"({differs}); leave blocks out of the targets, or protect these"
        )

    def _fields(self, kept: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Yield fields that may state the blocks that are kept."""
        count, new = len(self._stack), {old: position for position, old in enumerate(kept)}
        cut: dict[str, Any] = {}  # one entry for each block, such as layer_types
        numbered: dict[str, Any] = {}  # numbers of blocks, such as cross_attention_layers
        for name, value in vars(self._config).items():
            if not isinstance(value, (list, tuple)) or name in NOT_BY_BLOCK:
                continue
            if len(value) == count:
                cut[name] = type(value)(value[k] for k in kept)
                if isinstance(value[0], str) and set(cut[name]) < set(value):
                    # A hybrid needs a block of each kind, for its cache and its masks.
                    raise UnsupportedModelError(
                        f"of the kinds in {name} each must stay, and {', '.join(set(value) - set(cut[name]))} would be gone; "
                        "leave blocks out of the targets, or protect more of them"
                    )
            if "layer" in name and all(type(k) is int and 0 <= k < count for k in value):
                numbered[name] = type(value)(new[k] for k in value if k in new)
        if getattr(self._config, "is_heterogeneous", False):  # settings by the number of the block, as in Gemma 4
            by_number = self._config.to_dict()["per_layer_config"]
            cut["per_layer_config"] = {new[int(k)]: entry for k, entry in by_number.items() if int(k) in new}
        # Bart's decoder has a field of its own, decoder_layers.
        depths = [name for name, value in vars(self._config).items() if value == count and "layers" in name]
        # A list of as many numbers as there are blocks may be either.
        either = sorted(cut.keys() & numbered.keys())
        for depth, *chosen in product(dict.fromkeys(("num_hidden_layers", *depths)), *[(cut, numbered)] * len(either)):
            lists = {name: source[name] for name, source in zip(either, chosen, strict=True)}
            # The depth comes first: settings by number are checked against it where they are set.
            yield {depth: len(kept), **numbered, **cut, **lists}

    def _numbers(self, fields: dict[str, Any], kept: Sequence[int]) -> Iterator[tuple[nn.Module, str, Any]]:
        """Yield (module, attribute, value) for what depends on the depth, or on the position of a block that is kept.

        Raises
        ------
        _Differs
            The model that is built with these fields differs in anything else.
        """
        built = configured(self._model, fields) if can_be_stated(self._model, fields) else None
        if built is None or self._dense is None:
            raise _Differs("no model can be built of it")
        path, modules, fresh = self._path, dict(self._model.named_modules()), dict(self._dense.named_modules())
        seen: set[str] = set()
        for name, then in built.named_modules():
            inside = name.startswith(f"{path}.")
            new = int(name[len(path) + 1 :].split(".")[0]) if inside else 0
            if new >= len(kept):
                raise _Differs(f"{path} has more blocks")
            old_name = f"{path}.{kept[new]}{name[len(f'{path}.{new}') :]}" if inside else name
            seen.add(old_name)
            before, module = fresh.get(old_name), modules.get(old_name)
            if before is None or module is None or type(before) is not type(then):
                raise _Differs(f"{old_name} is of another class")
            if not _shapes(module) == _shapes(before) == _shapes(then):
                raise _Differs(f"{old_name} has other shapes")
            if inside and _attributes(before) != _attributes(then):
                raise _Differs(f"{old_name} has other settings")
            for key, value in vars(then).items():
                old = vars(before).get(key)
                if type(value) is not type(old) or type(value) not in (int, list) or old == value:
                    continue
                # A number of a block falls as its position does, and a number of blocks to that of those that stay. A list is a
                # copy of one of the configuration.
                if (
                    isinstance(value, int)
                    and isinstance(old, int)
                    and (old - value != kept[new] - new if inside else (old, value) != (len(self._stack), len(kept)))
                ):
                    raise _Differs(f"{key} of {old_name} is {old}, and would be {value}")
                yield module, key, value
        stay = tuple(f"{path}.{k}." for k in kept)
        missing = [n for n in modules.keys() - seen if not n.startswith(f"{path}.") or f"{n}.".startswith(stay)]
        if missing:
            raise _Differs(f"{min(missing)} is missing")


def with_statable_blocks(model: nn.Module, ffns: FFNs) -> FFNs:
    """Return the FFNs with blocks that stay where no configuration states the model without a block of their kind.

    Raises
    ------
    UnsupportedModelError
        All blocks must stay.
    """
    stack = Stack(model, ffns.blocks[0].stack)
    kinds: dict[str, list[TransformerBlock]] = {}
    for block in ffns.blocks:
        parts = block.module.named_modules()
        kinds.setdefault(repr([(path, type(part), _attributes(part)) for path, part in parts]), []).append(block)
    staying: dict[TransformerBlock, TransformerBlock] = {}
    refusal: UnsupportedModelError | None = None
    for blocks in kinds.values() if len(ffns.blocks) > 1 else ():
        try:
            # Without the first, the others of its kind have other positions, by which a configuration may tell kinds apart.
            for block in dict.fromkeys((blocks[0], blocks[-1])):
                stack.without([block])
        except UnsupportedModelError as error:  # noqa: PERF203 -- the other kinds are tried all the same
            refusal = error
            staying |= {block: replace(block, stays=True) for block in blocks}
    if refusal is not None and all(block.stays or block in staying for block in ffns.blocks):
        raise refusal
    found = [(ffn, ffn.whole_block) for ffn in ffns]
    return FFNs(replace(ffn, whole_block=block and staying.get(block, block)) for ffn, block in found)


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Return the plain attributes of a module that do not number it, nor change in use."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, SIMPLE)
        and type(value) is not int
        and name not in ("training", "gradient_checkpointing")
        and name[0] != "_"
    }


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a module's own tensors that a checkpoint holds."""
    buffers = {n: b for n, b in module._buffers.items() if n not in module._non_persistent_buffers_set}
    return {n: tuple(tensor.shape) for n, tensor in (module._parameters | buffers).items() if tensor is not None}
