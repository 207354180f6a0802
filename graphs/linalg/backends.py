"""Backends: numpy or torch arithmetic, and the rule that gives every block its operator.

A vector is a one-dimensional numpy array or torch tensor; the few operations on it that differ
between the two live in an :class:`Arithmetic`.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np
from scipy import sparse

from graphs.errors import GraphError
from graphs.linalg.blocks import Block, DenseBlock, FloatArray, NumpyBuffers, as_numpy, is_torch
from graphs.linalg.cost_model import COSTS
from graphs.linalg.operators import (
    BlockOperator,
    CSRKernelOperator,
    CSROperator,
    DenseOperator,
    KernelOperator,
    TorchCSROperator,
    Vector,
)

if TYPE_CHECKING:
    import torch

__all__ = ["Arithmetic", "Backend", "BackendName", "NumpyArithmetic", "TorchArithmetic", "check_dtype", "make_backend"]

BackendName: TypeAlias = Literal["scipy", "torch", "dense", "auto"]


BACKENDS: tuple[BackendName, ...] = ("scipy", "torch", "dense", "auto")


DTYPES = ("float64", "float32")


# Blocks from this size on pay for loading the compiled kernels (half a second, once in a process).
KERNEL_ENTRIES = 1 << 18


# Bands on a GPU: few launches matter more than the cache.
GPU_BAND_ELEMENTS = 1 << 24


class Arithmetic(Protocol):
    """What differs between numpy and torch vectors."""

    @property
    def dtype(self) -> str:
        """float64 or float32."""

    def vector(self, values: FloatArray) -> Vector:
        """A vector of the arithmetic's dtype and device; a copy."""

    def to_numpy(self, vector: Vector) -> FloatArray:
        """Back to numpy; a copy."""

    def reciprocal(self, vector: Vector) -> Vector:
        """1 / vector, with 1 / 0 = 0."""

    def with_lowest_zeroed(self, vector: Vector, count: int) -> Vector:
        """A copy whose `count` lowest entries are zero; ties fall to the lower index."""

    def csr_operator(self, block: Block) -> BlockOperator:
        """The CSR operator of a block."""

    def dense_operator(self, block: DenseBlock) -> BlockOperator:
        """The dense operator of a block."""


@dataclass(frozen=True)
class NumpyArithmetic:
    """Vectors are numpy arrays; CSR products are scipy's, or compiled ones on all cores.

    Parameters
    ----------
    dtype : str
        float64 or float32.
    compiled : bool
        Whether large blocks are multiplied by :mod:`graphs.linalg.kernels`.
    """

    dtype: str = "float64"
    compiled: bool = False

    def vector(self, values: FloatArray) -> FloatArray:
        """A copy in the arithmetic's dtype."""
        return np.array(values, dtype=self.dtype)

    def to_numpy(self, vector: Vector) -> FloatArray:
        """A copy."""
        return np.array(vector)

    def reciprocal(self, vector: Vector) -> FloatArray:
        """1 / vector, with 1 / 0 = 0."""
        result: FloatArray = np.divide(1.0, vector, out=np.zeros_like(vector), where=vector != 0)
        return result

    def with_lowest_zeroed(self, vector: Vector, count: int) -> FloatArray:
        """A copy whose `count` lowest entries are zero."""
        result = np.array(vector)
        result[np.argsort(result, kind="stable")[:count]] = 0
        return result

    def csr_operator(self, block: Block) -> CSROperator:
        """Scipy CSR, multiplied by compiled kernels where it is large and `compiled` allows."""
        csr = block.to_csr().astype(self.dtype, copy=False)
        return CSRKernelOperator(csr) if self.compiled and csr.nnz >= KERNEL_ENTRIES else CSROperator(csr)

    def dense_operator(self, block: DenseBlock) -> BlockOperator:
        """Compiled kernels where the block is large and its memory order allows, else bands in numpy."""
        if self.compiled and block.shape[0] * block.shape[1] >= KERNEL_ENTRIES:
            matrices = _kernel_matrices(block)
            if matrices:
                return KernelOperator(matrices, block.column_major, block, self.dtype)
        return DenseOperator(block, np, NumpyBuffers(np.dtype(self.dtype)))


class TorchArithmetic:
    """Vectors are torch tensors on a device; CSR products are torch's (MKL on the CPU, cuSPARSE on CUDA).

    Parameters
    ----------
    device : str or torch.device
        Where to compute.
    dtype : str
        float64 or float32.
    """

    def __init__(self, device: str | torch.device = "cpu", dtype: str = "float64") -> None:
        import torch

        self._torch = torch
        self.dtype = check_dtype(dtype)
        self.torch_dtype: torch.dtype = getattr(torch, self.dtype)
        try:
            self.device = torch.device(device)
            # The meta device makes tensors, but they hold no numbers to add up; some devices know no float64.
            torch.zeros(1, device=self.device, dtype=self.torch_dtype).sum().item()
        except (RuntimeError, AssertionError, TypeError) as error:
            first = str(error).splitlines()[0]
            raise GraphError(
                f"device {str(device)!r} cannot be used here ({first}); expected 'cpu', or 'cuda' / 'cuda:N' on a "
                "machine with that GPU and a CUDA build of torch"
            ) from error

    def vector(self, values: FloatArray) -> torch.Tensor:
        """A copy on the device."""
        return self._torch.tensor(np.ascontiguousarray(values), dtype=self.torch_dtype, device=self.device)

    def to_numpy(self, vector: Vector) -> FloatArray:
        """A copy on the CPU."""
        return np.array(vector.cpu().numpy())

    def reciprocal(self, vector: Vector) -> torch.Tensor:
        """1 / vector, with 1 / 0 = 0."""
        return self._torch.where(vector != 0, 1.0 / vector, self._torch.zeros_like(vector))

    def with_lowest_zeroed(self, vector: Vector, count: int) -> torch.Tensor:
        """A copy whose `count` lowest entries are zero."""
        result: torch.Tensor = vector.clone()
        result[self._torch.argsort(result, stable=True)[:count]] = 0
        return result

    def csr_operator(self, block: Block) -> TorchCSROperator:
        """Torch CSR on the device."""
        return TorchCSROperator(self.csr(block.to_csr()))

    def dense_operator(self, block: DenseBlock) -> DenseOperator:
        """Bands in torch; numpy matrices are viewed as tensors, not copied."""
        torch = self._torch
        matrices = tuple(matrix if is_torch(matrix) else _as_tensor(matrix) for matrix in block.matrices)
        elements = None if self.device.type == "cpu" else GPU_BAND_ELEMENTS
        return DenseOperator(
            replace(block, matrices=matrices), torch, TorchBuffers(self.device, self.torch_dtype), elements
        )

    def csr(self, matrix: sparse.csr_array) -> torch.Tensor:
        """A torch CSR tensor of a scipy one, with its index dtype (int32 where it fits).

        int32 matters: on the CPU torch hands it to MKL as it is, and converts int64 at every product.
        """
        import torch

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            tensor: torch.Tensor = torch.sparse_csr_tensor(
                torch.from_numpy(matrix.indptr),
                torch.from_numpy(matrix.indices),
                torch.from_numpy(matrix.data).to(self.torch_dtype),
                size=matrix.shape,
                device=self.device,
                check_invariants=False,
            )
        return tensor


@dataclass(frozen=True)
class TorchBuffers:
    """Buffers in torch, on a device; sources may lie on another one."""

    device: Any
    dtype: Any

    def empty(self, n_rows: int, n_columns: int) -> torch.Tensor:
        """An uninitialised (n_rows, n_columns) tensor."""
        import torch

        return torch.empty((n_rows, n_columns), dtype=self.dtype, device=self.device)

    def absolute(self, source: Any, target: Any) -> None:
        """Write |source| into `target`."""
        target.copy_(source).abs_()


def _as_tensor(matrix: FloatArray) -> torch.Tensor:
    import torch

    with warnings.catch_warnings():
        # The graph only reads: a read-only array (a memory map, say) is fine to view.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        # torch knows no negative strides: a reversed view is the one case that is copied.
        return torch.from_numpy(matrix if min(matrix.strides) >= 0 else matrix.copy())


def _kernel_matrices(block: DenseBlock) -> tuple[Any, ...]:
    """The block's matrices as the kernels read them, without a copy; empty if they cannot."""
    if block.exponent != 1:
        # The kernels take magnitudes; squares are taken in bands.
        return ()
    found: list[Any] = []
    for matrix in block.matrices:
        array = matrix
        if is_torch(matrix):
            if matrix.device.type != "cpu":
                return ()
            kind = str(matrix.dtype)
            if kind not in ("torch.float32", "torch.float64", "torch.bfloat16"):
                return ()
            array = _bits(matrix) if kind == "torch.bfloat16" else as_numpy(matrix)
        elif array.dtype not in (np.float32, np.float64):
            return ()
        array = array.T if block.column_major else array
        if not array.flags.c_contiguous:
            return ()
        found.append(array)
    # The kernels know one matrix, or two of a kind.
    return tuple(found) if len(found) <= 2 and len({array.dtype for array in found}) == 1 else ()


def _bits(matrix: torch.Tensor) -> Any:
    import torch

    return matrix.view(torch.int16).numpy().view(np.uint16)


@dataclass(frozen=True)
class Backend:
    """An arithmetic and the rule that gives every block its operator.

    Attributes
    ----------
    name : str
        What the result reports, e.g. ``torch (cpu, float64)``.
    arithmetic : Arithmetic
        Vectors and products.
    form : {"csr", "dense", "auto"}
        The operator of every block; auto picks the cheaper one for the number of products to come.
    engine : str
        Whose costs decide: a key of :data:`graphs.linalg.cost_model.COSTS`, or another device type.
    """

    name: str
    arithmetic: Arithmetic
    form: Literal["csr", "dense", "auto"]
    engine: str

    def operator(self, block: Block, products: int) -> BlockOperator:
        """The operator of `block` when about `products` products will be taken."""
        dense = self.form == "dense" or (self.form == "auto" and self._dense_is_cheaper(block, products))
        if not dense:
            return self.arithmetic.csr_operator(block)
        if not isinstance(block, DenseBlock):
            block = DenseBlock((block.to_csr().toarray(),))
        return self.arithmetic.dense_operator(block)

    def _dense_is_cheaper(self, block: Block, products: int) -> bool:
        costs = COSTS.get(self.engine, COSTS["cuda"])
        size = block.shape[0] * block.shape[1]
        if isinstance(block, DenseBlock):
            # Below this many products no density, however low, pays for the conversion.
            if products <= costs.dense_to_csr:
                return True
            return products * (1.0 - costs.csr_product * block.edges / size) < costs.dense_to_csr
        return products * (costs.csr_product * block.edges / size - 1.0) > costs.csr_to_dense


def check_dtype(dtype: Any) -> str:
    """``float64`` or ``float32`` by its name, else a GraphError; torch's own names are taken too.

    Examples
    --------
    >>> check_dtype("torch.float32")
    'float32'
    """
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise GraphError(f"unknown dtype {dtype!r}; expected one of {', '.join(DTYPES)}")
    return name


def make_backend(name: str, device: str | torch.device | None, dtype: str, blocks: Iterable[Block] = ()) -> Backend:
    """Validate the choice of a user and build the backend.

    Parameters
    ----------
    name : {"scipy", "torch", "dense", "auto"}
        Explicit CSR on scipy or torch, dense weights, or the cheapest for each block. On the CPU "dense" and
        "auto" compute in numpy and compiled kernels, on a GPU in torch.
    device : str or torch.device, optional
        By default where the graph's first torch matrix lies, else the CPU.
    dtype : {"float64", "float32"}
    blocks : iterable of blocks
        What will be multiplied.

    Raises
    ------
    GraphError
        Unknown name or dtype, a device that is not there, scipy with a device other than the CPU,
        torch asked for and not installed.

    Examples
    --------
    >>> make_backend("scipy", None, "float64").name, make_backend("auto", None, "float32").name
    ('scipy (float64, csr)', 'compiled (float32, auto)')
    """
    if name not in BACKENDS:
        raise GraphError(f"unknown backend {name!r}; expected one of {', '.join(BACKENDS)}")
    dtype = check_dtype(dtype)
    if name == "scipy" and device is not None and str(device) != "cpu":
        raise GraphError(f"backend 'scipy' computes on the CPU only, got device {str(device)!r}; use backend='torch'")
    where = device if device is not None else _device_of(blocks)
    wants_torch = name == "torch" or (name != "scipy" and str(where).split(":")[0] != "cpu")
    if wants_torch and importlib.util.find_spec("torch") is None:
        raise GraphError(f"backend {name!r} needs torch, which is not installed; pip install torch, or use 'scipy'")
    form: Literal["csr", "dense", "auto"] = "auto" if name == "auto" else "dense" if name == "dense" else "csr"
    if not wants_torch:
        compiled = name != "scipy"
        engine = "compiled" if compiled else "scipy"
        return Backend(f"{engine} ({dtype}, {form})", NumpyArithmetic(dtype, compiled), form, engine)
    arithmetic = TorchArithmetic(where, dtype)
    return Backend(f"torch ({arithmetic.device}, {dtype}, {form})", arithmetic, form, arithmetic.device.type)


def _device_of(blocks: Iterable[Block]) -> Any:
    """Where the first torch matrix lies, else the CPU."""
    for block in blocks:
        for matrix in block.matrices if isinstance(block, DenseBlock) else ():
            if is_torch(matrix):
                return matrix.device
    return "cpu"
