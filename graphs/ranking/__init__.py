"""PageRank of layered graphs and of digraphs of blocks."""

__all__: list[str] = []
