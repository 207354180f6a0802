"""Graphs and ranks in files, and conversion from and to other libraries."""

__all__: list[str] = []
