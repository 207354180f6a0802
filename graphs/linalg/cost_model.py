"""The costs by which the backend "auto" chooses between dense and CSR products, in one table.

``python -m benchmarks.crossover`` measures the table anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["COSTS", "Costs"]


@dataclass(frozen=True)
class Costs:
    """Costs of an engine, in products of the full dense block.

    Attributes
    ----------
    csr_product : float
        A product of the full block's CSR; that of a thinner one costs this times its density.
    dense_to_csr : float
        Building the CSR from a dense block.
    csr_to_dense : float
        Building the dense block from CSR.
    """

    csr_product: float
    dense_to_csr: float
    csr_to_dense: float


# "compiled" is the CPU (two cores of an AMD EPYC); any other key a torch device type. Devices that are not listed go by
# "cuda", which is a guess from CPU timings of torch: no GPU was at hand.
COSTS: Mapping[str, Costs] = {
    "compiled": Costs(csr_product=7.0, dense_to_csr=39.0, csr_to_dense=3.0),
    "cuda": Costs(csr_product=3.0, dense_to_csr=20.0, csr_to_dense=10.0),
}
