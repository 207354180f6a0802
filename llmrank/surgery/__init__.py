"""Changes of a model: masks applied, output maps repaired, results saved."""

__all__: list[str] = []
