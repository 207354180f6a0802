"""How near a pruned model is to the dense one, as pipelines measure it: of one layer at a time, and with and without a repair."""

__all__: list[str] = []
