"""Arrays as the page holds them: base64 of little-endian bytes."""

from __future__ import annotations

import base64
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["IndexType", "encode_array", "index_dtype"]

IndexType: TypeAlias = type[np.uint16] | type[np.uint32]


def index_dtype(size: int) -> IndexType:
    """Return the smallest type of indices below `size`."""
    return np.uint16 if size <= 1 << 16 else np.uint32


def encode_array(values: npt.NDArray[Any], dtype: type[np.generic]) -> dict[str, str]:
    """Convert an array for JSON: ``dtype`` is the name of its type, ``data`` its values as base64."""
    little = np.dtype(dtype).newbyteorder("<")
    return {"dtype": np.dtype(dtype).name, "data": base64.b64encode(values.astype(little).tobytes()).decode("ascii")}
