"""A model's graph, looked at: what every scorer says, figures, and a page."""

__all__: list[str] = []
