"""Changes to a model: masks are applied, output maps repaired, checkpoints written."""

__all__: list[str] = []
