"""The heads of an attention, and the configuration fields that state how many there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Heads"]


@dataclass(frozen=True)
class Heads:
    """How the numbers that the output map of an attention reads are divided among its heads.

    Heads that share keys and values are a group; the heads of a group are adjacent. If all heads share them, every head can be
    removed alone, and the keys and values stay; otherwise a group is removed as a whole.

    Attributes
    ----------
    n_heads : int
        Number of heads (of queries).
    n_groups : int
        Number of groups of heads, which is the number of heads of keys and of values.
    size : int
        How many numbers the output map reads of each head.

    Examples
    --------
    >>> heads = Heads(n_heads=9, n_groups=3, size=64)
    >>> heads.n_units, heads.unit_size, heads.counts(384)
    (3, 192, (6, 2))
    """

    n_heads: int
    n_groups: int
    size: int

    @property
    def n_units(self) -> int:
        """Number of units that can be removed: groups, or heads if there is one group."""
        return self.n_groups if self.n_groups > 1 else self.n_heads

    @property
    def unit_size(self) -> int:
        """How many numbers the output map reads of each unit."""
        return self.n_heads // self.n_units * self.size

    def counts(self, width: int) -> tuple[int, int]:
        """Return the numbers of heads and of groups of an attention whose output map reads `width` numbers."""
        return width // self.size, width // self.unit_size if self.n_groups > 1 else 1

    def fields(self, config: Any, width: int) -> dict[str, int]:
        """Return the fields by which a configuration states an attention whose output map reads `width` numbers."""
        n_heads, n_groups = self.counts(width)
        found = {"num_attention_heads": n_heads}
        if getattr(config, "num_key_value_heads", None) is not None:
            found["num_key_value_heads"] = n_groups
        if getattr(config, "head_dim", None) != self.size:
            found["head_dim"] = self.size
        return found

    @classmethod
    def of(cls, config: Any, n_values: int, n_rows: int) -> Heads | None:
        """Return the heads of an attention; None if their size, by the configuration, does not fit.

        Parameters
        ----------
        config : transformers configuration
        n_values : int
            How many numbers the output map reads.
        n_rows : int
            How many rows the value map has for them.
        """
        size = cls.size_of(config)
        if not size or n_values % size or n_rows % size or (n_values // size) % (n_rows // size):
            return None
        return cls(n_values // size, n_rows // size, size)

    @staticmethod
    def size_of(config: Any) -> int:
        """Return the size of a head by a configuration; 0 if it does not say."""
        stated, hidden = getattr(config, "head_dim", None), getattr(config, "hidden_size", None)
        n_heads = getattr(config, "num_attention_heads", None)
        found = stated if stated is not None else hidden // n_heads if hidden and n_heads else 0
        return found if isinstance(found, int) and found > 0 else 0
