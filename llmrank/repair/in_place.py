"""Repaired weights that are written over the model's own weights, for models that fit in memory only once."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from typing import IO

import torch

from llmrank.models import LinearMap
from llmrank.repair.base_repair import RepairedMap

__all__ = ["RepairsInPlace"]


class RepairsInPlace:
    """Writes repaired weights over the model's own weights, and keeps the bytes of the old weights in a temporary file.

    :meth:`restore` writes the old weights back; :meth:`close` deletes the file.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        # Views of the weights that were written over, and where their old bytes begin in the file.
        self._replaced: list[tuple[torch.Tensor, int]] = []

    def write(self, output_map: LinearMap, repaired: RepairedMap) -> RepairedMap:
        """Save the weight of an output map in the file, and write the repaired weight, but not the bias, into the model.

        Returns
        -------
        RepairedMap
            `repaired` with None as its weight: the model holds the weight now.

        Raises
        ------
        OSError
            The temporary file cannot be written, for example because the disk is full; the map is unchanged.
        """
        if repaired.weight is None:
            return repaired
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by close()
        weight = output_map.weight
        offset = self._file.seek(0, os.SEEK_END)
        try:
            self._file.write(weight.cpu().contiguous().view(torch.uint8).numpy().data)
            self._file.flush()
        except OSError as error:
            raise OSError(
                f"cannot keep the weights that a repair replaces in the temporary directory {tempfile.gettempdir()} ({error}); "
                "free space there, or set TMPDIR to another place"
            ) from error
        self._replaced.append((weight, offset))
        weight.copy_(repaired.weight)
        return replace(repaired, weight=None)

    def restore(self) -> None:
        """Write the old weights back, bit for bit. After an interrupt, a second call restores the rest."""
        while self._replaced and self._file is not None:
            weight, offset = self._replaced[-1]
            self._file.seek(offset)
            size = weight.numel() * weight.element_size()
            values = torch.frombuffer(bytearray(self._file.read(size)), dtype=weight.dtype)
            weight.copy_(values.view(weight.shape))
            self._replaced.pop()

    def close(self) -> None:
        """Delete the file; weights that were not restored stay repaired."""
        self._replaced.clear()
        if self._file is not None:
            self._file.close()
