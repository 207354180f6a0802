"""Prune language models through an explicit graph of their feed-forward networks.

A name is imported when it is first used, because torch and transformers take seconds. ``__init__.pyi`` lists the names.
"""

import lazy_loader

from llmrank.version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
