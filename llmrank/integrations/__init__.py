"""Pipelines as parts of other programs; each module needs the package that it is named after."""

__all__: list[str] = []
