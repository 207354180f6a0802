"""Values that rich prints, in a notebook and in a session of Python too."""

from __future__ import annotations

from rich.console import Console, Group
from rich.jupyter import JupyterMixin

__all__ = ["Printed", "PrintedGroup"]


class Printed(JupyterMixin):
    """Something that rich prints: a notebook shows it as HTML, and a session of Python shows its text instead of a repr."""

    def __repr__(self) -> str:
        console = Console(color_system=None, force_terminal=False, force_jupyter=False)
        with console.capture() as captured:
            console.print(self)
        return captured.get().rstrip("\n")


class PrintedGroup(Printed, Group):
    """Tables and sentences below each other."""
