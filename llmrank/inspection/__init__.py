"""Inspection of a model's graphs: ranks by every scorer, figures, and a page to explore."""

__all__: list[str] = []
