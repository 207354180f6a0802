"""The data structures of graphs: layered graphs, digraphs of blocks, and the layers of a digraph."""

__all__: list[str] = []
