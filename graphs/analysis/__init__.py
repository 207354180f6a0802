"""Analysis of a graph and its rank: concentration, flow, paths, and summaries of layers and nodes."""

__all__: list[str] = []
