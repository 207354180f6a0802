"""How near a pruned model is to the dense one: with one layer pruned at a time, and with and without a repair."""

__all__: list[str] = []
