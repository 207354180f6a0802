"""What a graph and its rank say: concentration, flow, paths, and summaries of layers and nodes."""

__all__: list[str] = []
