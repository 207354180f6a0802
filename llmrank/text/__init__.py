"""The texts of calibration and evaluation: where they come from, and how they become token sequences."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
