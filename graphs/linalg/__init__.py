"""Sparse linear algebra: blocks of edges, the operators that multiply them, and the backends that the operators run on."""

__all__: list[str] = []
