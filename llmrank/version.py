"""The version of llmrank, which stands in ``pyproject.toml`` alone: read from what is installed."""

from importlib import metadata

__all__: list[str] = []

try:
    __version__ = metadata.version("llmrank")
except metadata.PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "unknown"
