"""Finding the FFNs of a model: by their shapes and trial runs, or by an explicit list."""

__all__: list[str] = []
