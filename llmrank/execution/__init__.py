"""How a run computes: passes over blocks, the processes that divide it, and the files of its work directory."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
