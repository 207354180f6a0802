"""The commands: a module for each, or for two that belong together, with their options, what they run and what they print."""

__all__: list[str] = []
