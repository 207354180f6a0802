"""Backends: numpy or torch arithmetic, and the rule that chooses the operator of every block.

A block is a matrix of edge weights, and its operator multiplies vectors by it: in CSR form, or in dense form band by band. A
vector is a numpy array or a torch tensor, of shape (n,), or (n, k) for k vectors at once.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, get_args

import numpy as np
from scipy import sparse

from graphs.errors import GraphError
from graphs.linalg.blocks import BAND_ELEMENTS, Block, DenseBlock, FloatArray, NumpyBufferMaker, as_numpy, is_torch
from graphs.linalg.cost_model import COSTS, Costs
from graphs.linalg.operators import (
    BlockOperator,
    CSRKernelOperator,
    CSROperator,
    DenseOperator,
    KernelOperator,
    TorchCSROperator,
    Vector,
    torch_csr,
)
from graphs.linalg.stacking import StackedBlock, StackedOperator

if TYPE_CHECKING:
    import torch

__all__ = [
    "Arithmetic",
    "Backend",
    "BackendName",
    "NumpyArithmetic",
    "TorchArithmetic",
    "TorchBufferMaker",
    "check_dtype",
    "make_backend",
]

BackendName: TypeAlias = Literal["scipy", "torch", "dense", "auto"]

BACKENDS: tuple[BackendName, ...] = get_args(BackendName)

DTYPES = ("float64", "float32")

# Every process has to load the compiled kernels, in a quarter of a second. On a smaller block a call saves too little to make up
# for that: less than 0.1 ms where it is dense (benchmarks/LOG.md).
KERNEL_ENTRIES = 1 << 16

# Entries of a band, the part of a dense block that is read at once. On a GPU, few calls matter more than the use of a cache.
GPU_BAND_ELEMENTS = 1 << 24


class Arithmetic(Protocol):
    """The operations that differ between numpy and torch vectors."""

    @property
    def dtype(self) -> str:
        """float64 or float32."""

    def vector(self, values: FloatArray) -> Vector:
        """Copy numbers into a vector of the arithmetic's dtype and device."""

    def vectors(self, parts: Sequence[FloatArray]) -> list[Vector]:
        """Copy arrays, all (n_l,) or all (n_l, k) with the same k, into vectors; if they go to a device, in one transfer."""

    def zeros(self, shape: tuple[int, ...]) -> Vector:
        """Make a vector of zeros where the arithmetic computes."""

    def to_numpy(self, vector: Vector) -> FloatArray:
        """Copy a vector into a numpy array."""

    def reciprocal(self, vector: Vector) -> Vector:
        """Compute 1 / vector, with 1 / 0 = 0."""

    def with_lowest_zeroed(self, vector: Vector, count: int) -> Vector:
        """Copy a vector and set its `count` lowest entries to zero; of equal entries, those of lower index first."""

    def dense_form(self, block: Block) -> DenseBlock:
        """Build a dense matrix of a block where the arithmetic computes."""

    def csr_operator(self, block: Block) -> BlockOperator:
        """Build the CSR operator of a block."""

    def dense_operator(self, block: DenseBlock, n_entries: int | None = None) -> BlockOperator:
        """Build the dense operator of a block; `n_entries` counts the entries of the stacked block that it belongs to, if any."""


@dataclass(frozen=True)
class NumpyArithmetic:
    """Arithmetic on numpy arrays.

    Parameters
    ----------
    dtype : {"float64", "float32"}
    compiled : bool
        Whether :mod:`graphs.linalg.kernels` may multiply large blocks.
    """

    dtype: str = "float64"
    compiled: bool = False

    def vector(self, values: FloatArray) -> FloatArray:
        """Copy numbers into an array of the arithmetic's dtype."""
        return np.array(values, dtype=self.dtype)

    def vectors(self, parts: Sequence[FloatArray]) -> list[FloatArray]:
        """Copy several arrays into arrays of the arithmetic's dtype."""
        return [self.vector(part) for part in parts]

    def zeros(self, shape: tuple[int, ...]) -> FloatArray:
        """Make an array of zeros."""
        return np.zeros(shape, self.dtype)

    def to_numpy(self, vector: Vector) -> FloatArray:
        """Copy a vector."""
        return np.array(vector)

    def reciprocal(self, vector: Vector) -> FloatArray:
        """Compute 1 / vector, with 1 / 0 = 0."""
        result: FloatArray = np.divide(1.0, vector, out=np.zeros_like(vector), where=vector != 0)
        return result

    def with_lowest_zeroed(self, vector: Vector, count: int) -> FloatArray:
        """Copy a vector and set its `count` lowest entries to zero."""
        result = np.array(vector)
        result[np.argsort(result, kind="stable")[:count]] = 0
        return result

    def dense_form(self, block: Block) -> DenseBlock:
        """Build a dense array of a block."""
        return DenseBlock((block.to_csr().toarray(),))

    def csr_operator(self, block: Block) -> CSROperator:
        """Build an operator on scipy CSR, or if `compiled`, on kernels for a large block."""
        csr = block.to_csr().astype(self.dtype, copy=False)
        return CSRKernelOperator(csr) if self.compiled and csr.nnz >= KERNEL_ENTRIES else CSROperator(csr)

    def dense_operator(self, block: DenseBlock, n_entries: int | None = None) -> BlockOperator:
        """Build an operator on numpy bands, or if `compiled`, on kernels for a large block that they can read."""
        if self.compiled and (n_entries or math.prod(block.shape)) >= KERNEL_ENTRIES:
            matrices = _kernel_matrices(block)
            if matrices:
                return KernelOperator(matrices, block, self.dtype)
        return DenseOperator(block, np, NumpyBufferMaker(np.dtype(self.dtype)))


class TorchArithmetic:
    """Arithmetic on torch tensors of a device.

    Parameters
    ----------
    device : str or torch.device
    dtype : {"float64", "float32"}
    """

    def __init__(self, device: str | torch.device = "cpu", dtype: str = "float64") -> None:
        import torch

        self._torch = torch
        self.dtype = check_dtype(dtype)
        self.torch_dtype: torch.dtype = getattr(torch, self.dtype)
        try:
            self.device = torch.device(device)
            # On the meta device tensors hold no numbers, so reading a sum fails; some devices lack float64.
            torch.zeros(1, device=self.device, dtype=self.torch_dtype).sum().item()
        except (RuntimeError, AssertionError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise GraphError(
                f"device {str(device)!r} cannot be used here ({reason}); expected 'cpu', or 'cuda' / 'cuda:N' on a "
                "machine with that GPU and a CUDA build of torch"
            ) from error

    def vector(self, values: FloatArray) -> torch.Tensor:
        """Copy numbers to the device."""
        return self._torch.tensor(np.ascontiguousarray(values), dtype=self.torch_dtype, device=self.device)

    def vectors(self, parts: Sequence[FloatArray]) -> list[torch.Tensor]:
        """Copy several arrays to the device, in one transfer if it is not the CPU."""
        if self.device.type == "cpu":
            return [self.vector(part) for part in parts]
        return list(self._torch.split(self.vector(np.concatenate(parts)), [len(part) for part in parts]))

    def zeros(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Make a tensor of zeros on the device."""
        return self._torch.zeros(shape, dtype=self.torch_dtype, device=self.device)

    def to_numpy(self, vector: Vector) -> FloatArray:
        """Copy a vector to the CPU."""
        return np.array(vector.cpu().numpy())

    def reciprocal(self, vector: Vector) -> torch.Tensor:
        """Compute 1 / vector, with 1 / 0 = 0."""
        return self._torch.where(vector != 0, 1.0 / vector, self._torch.zeros_like(vector))

    def with_lowest_zeroed(self, vector: Vector, count: int) -> torch.Tensor:
        """Copy a vector and set its `count` lowest entries to zero."""
        result: torch.Tensor = vector.clone()
        result[self._torch.argsort(result, stable=True)[:count]] = 0
        return result

    def dense_form(self, block: Block) -> DenseBlock:
        """Build a dense tensor of a block on the device."""
        matrix = block.to_csr().toarray()
        return DenseBlock((matrix if self.device.type == "cpu" else self.vector(matrix),))

    def csr_operator(self, block: Block) -> TorchCSROperator:
        """Build an operator on torch CSR on the device."""
        return TorchCSROperator(self.csr(block.to_csr()))

    def dense_operator(self, block: DenseBlock, n_entries: int | None = None) -> DenseOperator:
        """Build an operator on bands in torch."""
        buffer_maker = TorchBufferMaker(self.device, self.torch_dtype)
        band_elements = BAND_ELEMENTS if self.device.type == "cpu" else GPU_BAND_ELEMENTS
        return DenseOperator(block, self._torch, buffer_maker, band_elements)

    def csr(self, matrix: sparse.csr_array) -> torch.Tensor:
        """Build a torch CSR tensor from a scipy matrix, with the same index dtype."""
        # scipy's int32 indices stay int32: torch on the CPU would convert int64 indices at every product.
        from_numpy = self._torch.from_numpy
        crow, columns = (from_numpy(indices).to(self.device) for indices in (matrix.indptr, matrix.indices))
        values = from_numpy(matrix.data).to(self.torch_dtype).to(self.device)
        return torch_csr(crow, columns, values, matrix.shape)


@dataclass(frozen=True)
class TorchBufferMaker:
    """A maker of torch buffers on one device; the matrices that are copied into the buffers may lie on another device."""

    device: Any
    dtype: Any

    def empty(self, n_rows: int, n_columns: int) -> torch.Tensor:
        """Make an uninitialised (n_rows, n_columns) tensor."""
        import torch

        return torch.empty((n_rows, n_columns), dtype=self.dtype, device=self.device)

    def write_absolute(self, source: Any, target: Any) -> None:
        """Write |source| into `target`; a numpy array with negative strides is copied first."""
        target.copy_(source if is_torch(source) else _as_tensor(source)).abs_()


def _as_tensor(matrix: FloatArray) -> torch.Tensor:
    import torch

    with warnings.catch_warnings():
        # Weights are only read, so a view of a read-only array is safe.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        # torch has no negative strides.
        return torch.from_numpy(matrix if min(matrix.strides) >= 0 else matrix.copy())


def _kernel_matrices(block: DenseBlock) -> tuple[Any, ...]:
    """Return views of the matrices for the kernels, or () if the kernels cannot multiply this block without copies."""
    if block.n_squarings > 1:
        return ()
    arrays: list[Any] = []
    for matrix in block.matrices:
        array = matrix
        if is_torch(matrix):
            import torch

            if matrix.device.type != "cpu" or matrix.dtype not in (torch.float32, torch.float64, torch.bfloat16):
                return ()
            bfloat16 = matrix.dtype == torch.bfloat16
            array = matrix.view(torch.int16).numpy().view(np.uint16) if bfloat16 else as_numpy(matrix)
        elif array.dtype not in (np.float32, np.float64):
            return ()
        array = array.T if block.column_major else array
        if not array.flags.c_contiguous:
            return ()
        arrays.append(array)
    return tuple(arrays) if len(arrays) <= 2 and len({array.dtype for array in arrays}) == 1 else ()


@dataclass(frozen=True)
class Backend:
    """An arithmetic, and the rule that chooses the operator of every block.

    Attributes
    ----------
    name : str
        The name in the result of a rank, such as ``torch (cpu, float64, csr)``.
    arithmetic : Arithmetic
    form : {"csr", "dense", "auto"}
        The form of every block; "auto" chooses the cheaper one for the expected number of products.
    costs : Costs
        The costs by which "auto" chooses.
    """

    name: str
    arithmetic: Arithmetic
    form: Literal["csr", "dense", "auto"]
    costs: Costs

    def operator(self, block: Block, products: int, n_entries: int | None = None) -> BlockOperator:
        """Build the operator of a block that is to be multiplied about `products` times.

        `n_entries` is the number of entries of the stacked block that the block is a part of, if any. It decides whether to load
        the compiled kernels.
        """
        n_entries = n_entries or math.prod(block.shape)
        if isinstance(block, StackedBlock):
            operators = [self.operator(part.block, products, n_entries) for part in block.placed]
            return StackedOperator(block, operators, self.arithmetic.zeros)
        dense = self.form == "dense" or (self.form == "auto" and self._dense_is_cheaper(block, products))
        if not dense:
            return self.arithmetic.csr_operator(block)
        if not isinstance(block, DenseBlock):
            block = self.arithmetic.dense_form(block)
        return self.arithmetic.dense_operator(block, n_entries)

    def _dense_is_cheaper(self, block: Block, products: int) -> bool:
        costs, size = self.costs, math.prod(block.shape)
        if isinstance(block, DenseBlock):
            # So few products never pay for the conversion to CSR, even if the block has no edges: the edges need not be counted.
            if products <= costs.dense_to_csr:
                return True
            return products * (1.0 - costs.csr_product * block.n_edges / size) < costs.dense_to_csr
        return products * (costs.csr_product * block.n_edges / size - 1.0) > costs.csr_to_dense


def check_dtype(dtype: Any) -> str:
    """Check a dtype of vectors (torch's are allowed) and return its name, ``float64`` or ``float32``.

    Examples
    --------
    >>> check_dtype("torch.float32")
    'float32'
    """
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise GraphError(f"unknown dtype {dtype!r}; expected one of {', '.join(DTYPES)}")
    return name


def _is_cpu(device: str | torch.device) -> bool:
    return str(device).split(":")[0] == "cpu"


def make_backend(name: str, device: str | torch.device | None, dtype: str, blocks: Iterable[Block] = ()) -> Backend:
    """Check the choice of a backend and build it.

    Parameters
    ----------
    name : {"scipy", "torch", "dense", "auto"}
        "scipy" and "torch" multiply blocks in CSR form, "dense" in dense form, "auto" in the cheaper form of each block. On
        the CPU, "dense" and "auto" compute with numpy, scipy and compiled kernels; on other devices, with torch.
    device : str or torch.device, optional
        By default the device of the first torch matrix of a block, else the CPU; always the CPU for "scipy".
    dtype : {"float64", "float32"}
        The dtype of the vectors.
    blocks : iterable of blocks
        They only decide the default of `device`.

    Raises
    ------
    GraphError
        The name or dtype is unknown, the device cannot be used (or is not the CPU, for "scipy"), or torch is missing.

    Examples
    --------
    >>> make_backend("scipy", None, "float64").name, make_backend("auto", None, "float32").name
    ('scipy (float64, csr)', 'compiled (float32, auto)')
    """
    if not isinstance(name, str) or name not in BACKENDS:
        raise GraphError(f"unknown backend {name!r}; expected one of {', '.join(BACKENDS)}")
    dtype = check_dtype(dtype)
    if name == "scipy" and device is not None and not _is_cpu(device):
        raise GraphError(f"backend 'scipy' computes on the CPU only, got device {str(device)!r}; use backend='torch'")
    if device is None:
        device = next((block.device for block in blocks if block.device is not None), "cpu")
    needs_torch = name == "torch" or (name != "scipy" and not _is_cpu(device))
    if needs_torch and importlib.util.find_spec("torch") is None:
        cause = "backend 'torch'" if name == "torch" else f"device {str(device)!r}"
        raise GraphError(f"{cause} needs torch, which is not installed; pip install torch, or use 'scipy' on the CPU")
    form: Literal["csr", "dense", "auto"] = "auto" if name == "auto" else "dense" if name == "dense" else "csr"
    if not needs_torch:
        compiled = name != "scipy"
        library = "compiled" if compiled else "scipy"
        return Backend(f"{library} ({dtype}, {form})", NumpyArithmetic(dtype, compiled), form, COSTS["compiled"])
    arithmetic = TorchArithmetic(device, dtype)
    costs = COSTS.get(arithmetic.device.type, COSTS["cuda"])
    return Backend(f"torch ({arithmetic.device}, {dtype}, {form})", arithmetic, form, costs)
