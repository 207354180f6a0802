"""Calibration: the text, the forward passes over it, and the statistics that are summed over its tokens."""

__all__: list[str] = []
