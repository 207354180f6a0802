"""Sparse linear algebra: blocks of edges, the operators that multiply by them, and where these run."""

__all__: list[str] = []
