"""The costs by which the backend "auto" chooses between dense and CSR products (measured by ``benchmarks/crossover.py``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["COSTS", "Costs"]


@dataclass(frozen=True)
class Costs:
    """Costs on one kind of device; the unit is one product of a dense block.

    Attributes
    ----------
    csr_product : float
        One product of a block in CSR form, divided by the density of the block.
    dense_to_csr : float
        Conversion of a dense block to CSR.
    csr_to_dense : float
        Conversion of a CSR block to dense.
    """

    csr_product: float
    dense_to_csr: float
    csr_to_dense: float


# "compiled" stands for numpy, scipy and the compiled kernels on the CPU. Other keys are torch device types; a type without an
# entry gets the costs of "cuda", which are a guess.
COSTS: Mapping[str, Costs] = {
    "compiled": Costs(csr_product=7.0, dense_to_csr=39.0, csr_to_dense=3.0),
    "cuda": Costs(csr_product=3.0, dense_to_csr=20.0, csr_to_dense=10.0),
}
