"""Pipelines as parts of other programs, and files for them; each module needs the package that it is named after."""

__all__: list[str] = []
