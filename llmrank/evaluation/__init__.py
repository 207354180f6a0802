"""How good a model is, and how close to the model it was cut from."""

__all__: list[str] = []
