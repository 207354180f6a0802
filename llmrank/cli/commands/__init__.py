"""The commands. A module holds one command, or two related ones: their options, what they run and what they print."""

__all__: list[str] = []
