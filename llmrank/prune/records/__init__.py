"""What pruners know of the layers of a model, and the units that they remove."""

__all__: list[str] = []
