"""Keep masks: which neurons of each layer are kept. ``True`` always means *kept*."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType

import torch

from graphs import GraphError
from graphs.io.tensor_files import read_tensors, write_tensors
from llmrank.errors import MaskError, check_type
from llmrank.models import FFNs, PrunableLayer
from llmrank.models.blocks import TransformerBlock
from llmrank.models.experts import Mixture

__all__ = ["Masks", "masks_of_experts"]


class Masks(Mapping[str, torch.Tensor]):
    """The keep masks of prunable layers by their names; immutable.

    Parameters
    ----------
    keep : mapping from str to (n,) tensor or sequence of bool, or of integers 0 and 1
        True (or 1) for kept neurons.
    weights : str
        Digest of the model that the masks are made for (:func:`llmrank.models.digest.weights_digest`); empty
        if it is not known. A file of masks holds it too. Masks that are equal may have different digests.

    Raises
    ------
    MaskError
        A mask is not one-dimensional, is of floats, or holds other values than 0 and 1.

    Examples
    --------
    >>> first, second = Masks({"mlp": [1, 1, 0]}), Masks({"mlp": [0, 1, 1]})
    >>> (first & second)["mlp"].tolist(), (first | second)["mlp"].tolist(), (~first)["mlp"].tolist()
    ([False, True, False], [True, True, True], [False, False, True])
    >>> first.kept, first.size, round(first.removed_share, 3)
    (2, 3, 0.333)
    """

    def __init__(self, keep: Mapping[str, object], weights: str = "") -> None:
        check_type("keep", keep, Mapping, "a mapping from names of layers to keep masks")
        self.weights = weights
        self._keep = MappingProxyType({name: _as_mask(name, value) for name, value in keep.items()})

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._keep[name].clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self._keep)

    def __len__(self) -> int:
        return len(self._keep)

    @classmethod
    def full(cls, sizes: Mapping[str, int]) -> Masks:
        """Make masks that keep every neuron; `sizes` maps the name of each layer to its number of neurons."""
        return cls({name: torch.ones(size, dtype=torch.bool) for name, size in sizes.items()})

    @property
    def size(self) -> int:
        """Number of neurons in all layers."""
        return sum(len(mask) for mask in self.values())

    @property
    def kept(self) -> int:
        """Number of neurons kept in all layers."""
        return sum(int(mask.sum()) for mask in self.values())

    @property
    def removed_share(self) -> float:
        """Share of the neurons that are removed, 0..1."""
        return 1.0 - self.kept / self.size if self.size else 0.0

    @property
    def widths(self) -> dict[str, int]:
        """Number of neurons kept in each layer."""
        return {name: int(mask.sum()) for name, mask in self.items()}

    @property
    def is_uniform(self) -> bool:
        """Whether all layers keep the same number of neurons."""
        return len(set(self.widths.values())) <= 1

    def removed(self, name: str) -> list[int]:
        """Return the indices of the neurons removed from a layer.

        Raises
        ------
        MaskError
            There is no mask of this name.
        """
        if not isinstance(name, str) or name not in self._keep:
            raise MaskError(f"there is no layer {name!r}; the masks are those of {', '.join(self._keep)}")
        return [int(k) for k in (~self[name]).nonzero().flatten()]

    def left_out(self, layers: Iterable[PrunableLayer]) -> list[TransformerBlock]:
        """Return the blocks of these layers that are left out, because none of their layers keeps a neuron."""
        kept: dict[TransformerBlock, bool] = {}
        for layer in layers:
            if layer.block is not None:
                kept[layer.block] = kept.get(layer.block, False) or bool(self._keep[layer.name].any())
        return [block for block, is_kept in kept.items() if not is_kept]

    def of(self, ffns: FFNs) -> Masks:
        """Return the masks of the layers of some of the FFNs."""
        return Masks({name: self[name] for name in ffns.layers}, self.weights)

    def _combine(self, other: Masks, operation: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Masks:
        if {n: len(m) for n, m in self.items()} != {n: len(m) for n, m in other.items()}:
            raise MaskError("masks of different layers cannot be combined; both must name the same layers and sizes")
        return Masks({name: operation(mask, other[name]) for name, mask in self.items()})

    def __and__(self, other: Masks) -> Masks:
        return self._combine(other, torch.logical_and)

    def __or__(self, other: Masks) -> Masks:
        return self._combine(other, torch.logical_or)

    def __invert__(self) -> Masks:
        return Masks({name: ~mask for name, mask in self.items()})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Masks):
            return NotImplemented
        return set(self) == set(other) and all(torch.equal(mask, other[name]) for name, mask in self.items())

    def __hash__(self) -> int:
        return hash(tuple((name, mask.numpy().tobytes()) for name, mask in sorted(self.items())))

    def __repr__(self) -> str:
        return f"Masks({len(self)} layers, {self.kept:,} of {self.size:,} neurons kept)"

    def check(self, layers: Mapping[str, PrunableLayer]) -> None:
        """Check that the masks fit these prunable layers, keep a neuron of each that is not an expert, and leave heads whole.

        Raises
        ------
        MaskError
            Names or sizes differ (the masks are of another model); a layer that is no expert keeps no neuron, and its block is
            not left out; or parts of heads are removed.
        """
        missing, unknown = sorted(set(layers) - set(self)), sorted(set(self) - set(layers))
        if missing or unknown:
            raise MaskError(
                f"these masks do not fit this model: {_count_and_names(unknown)} not in it, {_count_and_names(missing)} "
                "without a mask; expected one mask for each of its prunable layers"
            )
        left_out = self.left_out(layers.values())
        for name, layer in layers.items():
            if len(self[name]) != layer.size:
                raise MaskError(
                    f"the mask of {name} has {len(self[name])} entries, the layer {layer.size} neurons: the masks are of "
                    "another model, or this one has been compacted already; pass the model that they were made for"
                )
            if layer.mixture is None and layer.block not in left_out and not bool(self[name].any()):
                raise MaskError(f"the mask of {name} keeps no neuron; keep at least one")
            units = None if layer.heads is None else self[name].view(layer.heads.n_units, layer.heads.unit_size)
            if units is not None and not torch.equal(units.any(1), units.all(1)):
                what = "groups of heads that share keys and values" if layer.heads.n_groups > 1 else "heads"  # type: ignore[union-attr]
                raise MaskError(
                    f"the mask of {name} keeps parts of heads; expected whole {what}, {units.shape[1]} numbers each"
                )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file with one uint8 vector (1 = kept) for each layer, completely or not at all.

        Raises
        ------
        MaskError
            The directory does not exist, or the path is a directory, a device or a pipe.
        OSError
            The disk is full, or the system reports another error.
        """
        tensors = {name: mask.to(torch.uint8).numpy() for name, mask in self.items()}
        try:
            write_tensors(path, tensors, {"weights": self.weights}, "mask")
        except GraphError as error:
            raise MaskError(str(error)) from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Masks:
        """Read a file written by :meth:`save`.

        Raises
        ------
        MaskError
            The file is missing, truncated, damaged, or of another kind or version.
        """
        try:
            about, tensors = read_tensors(path, "mask")
        except GraphError as error:
            raise MaskError(str(error)) from error
        weights = about.get("weights", "")
        if not isinstance(weights, str):
            raise MaskError(
                f"{path} states {str(weights)[:80]} as the digest of its model, and not a text; write it again"
            )
        return cls(tensors, weights)


def masks_of_experts(ffns: FFNs, masks: Masks) -> dict[Mixture, torch.Tensor]:
    """Return the keep mask of the experts, (experts,) bool, of each mixture that loses some."""
    experts = zip(ffns.mixtures, ffns.experts.values(), strict=True)
    found = {mixture: torch.stack([masks[name].any() for name in names]) for mixture, names in experts}
    return {mixture: keep for mixture, keep in found.items() if not bool(keep.all())}


def _as_mask(name: str, value: object) -> torch.Tensor:
    tensor = torch.as_tensor(value).detach().cpu()
    if tensor.ndim != 1 or tensor.is_floating_point():
        raise MaskError(
            f"mask of {name}: expected a vector of booleans (or 0/1 integers), got {tensor.dtype} of shape "
            f"{tuple(tensor.shape)}"
        )
    if tensor.dtype != torch.bool:
        if bool(((tensor != 0) & (tensor != 1)).any()):
            raise MaskError(f"mask of {name}: expected 0 (removed) and 1 (kept), got other numbers")
        tensor = tensor.bool()
    return tensor.clone()


def _count_and_names(names: list[str]) -> str:
    return f"{len(names)} layer(s)" + (f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else "")
