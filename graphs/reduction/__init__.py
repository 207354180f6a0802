"""Smaller graphs from a graph: subgraphs, backbones, and sparser ones with a bound on the error."""

__all__: list[str] = []
