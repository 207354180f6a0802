"""Repaired weights written over a model's own, for models of which no memory holds two copies."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from typing import IO

import torch
from torch import nn

from llmrank.models import Projection
from llmrank.surgery.repair.base_repair import RepairedMap

__all__ = ["RepairsInPlace"]


class RepairsInPlace:
    """Writes repaired weights over a model's own, and keeps the bytes of the old ones in a temporary file.

    :meth:`restore` writes them back; :meth:`close` drops the file.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._replaced: list[tuple[nn.Parameter, int]] = []

    def write(self, output_map: Projection, repaired: RepairedMap) -> RepairedMap:
        """Write a repaired weight over the weight of an output map.

        Parameters
        ----------
        output_map : Projection
        repaired : RepairedMap
            Its bias is not written, because the map may have none before masks are applied.

        Returns
        -------
        RepairedMap
            `repaired` without its weight.

        Raises
        ------
        OSError
            No space for the temporary file; the map is unchanged.
        """
        if repaired.weight is None:
            return repaired
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by close()
        parameter: nn.Parameter = output_map.module.weight  # type: ignore[assignment]
        start = self._file.seek(0, os.SEEK_END)
        try:
            self._file.write(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
            self._file.flush()
        except OSError as error:
            raise OSError(
                f"cannot keep the weights that a repair replaces in the temporary directory {tempfile.gettempdir()} ({error}); "
                "free space there, or set TMPDIR to another place"
            ) from error
        self._replaced.append((parameter, start))
        output_map.weight.copy_(repaired.weight)
        return replace(repaired, weight=None)

    def restore(self) -> None:
        """Write the old weights back, bit for bit."""
        while self._replaced and self._file is not None:
            parameter, start = self._replaced[-1]
            self._file.seek(start)
            size = parameter.numel() * parameter.element_size()
            values = torch.frombuffer(bytearray(self._file.read(size)), dtype=parameter.dtype)
            parameter.data.copy_(values.view(parameter.shape))
            self._replaced.pop()

    def close(self) -> None:
        """Drop the file; the repaired weights stay in the model."""
        self._replaced.clear()
        if self._file is not None:
            self._file.close()
