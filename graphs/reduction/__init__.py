"""Smaller graphs made from a graph: subgraphs, and graphs with fewer edges and a bound on the change of their ranks."""

__all__: list[str] = []
