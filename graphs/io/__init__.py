"""Graphs and ranks in files, and in the forms of other libraries."""

__all__: list[str] = []
