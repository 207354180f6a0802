"""What each command takes: a module for each, without the packages that take seconds to import."""

__all__: list[str] = []
