"""Evaluation: how good a model is, and how close to the dense model."""

__all__: list[str] = []
