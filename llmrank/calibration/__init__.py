"""What a model does on calibration text: the text, the forward passes, and what is summed over tokens."""

__all__: list[str] = []
