"""Evaluation: how good a model is, and how close its predictions are to those of the dense model."""

__all__: list[str] = []
