"""Graphs: layered ones, digraphs of blocks, and how layers are found in a digraph."""

__all__: list[str] = []
