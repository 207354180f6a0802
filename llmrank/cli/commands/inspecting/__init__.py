"""``llmrank inspect``: the command and its tables."""

__all__: list[str] = []
