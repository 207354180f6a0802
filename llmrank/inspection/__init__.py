"""Inspection of a model's graphs: their ranks by several scorers, figures, and a page to explore."""

__all__: list[str] = []
