"""Analysis of a graph and its rank: how concentrated scores are, how they flow, and summaries of layers, nodes and paths."""

__all__: list[str] = []
