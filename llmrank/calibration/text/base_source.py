"""The base class of sources: texts that have a name, which users write in place of a path."""

from __future__ import annotations

from typing import Any, ClassVar

from llmrank.calibration.text.sequences import Request, Role, TokenSequences
from llmrank.calibration.text.tokenisation import sequences_of_text

__all__ = ["BaseSource"]


class BaseSource:
    """Base class of sources of text. Override :meth:`read`, or :meth:`sequences` if the tokens do not come from a text.

    Users write ``name``, or ``name:argument`` if :attr:`usage` says so. The first line of a subclass's docstring is its help on
    the command line.

    Parameters
    ----------
    argument : str
        What the user wrote after the colon.
    """

    name: ClassVar[str]
    # What follows the name and a colon; empty if nothing does.
    usage: ClassVar[str] = ""
    roles: ClassVar[tuple[Role, ...]] = ("calibration", "evaluation")

    def __init__(self, argument: str = "") -> None:
        self.argument = argument

    def __str__(self) -> str:
        return f"{self.name}:{self.argument}" if self.usage else self.name

    @classmethod
    def written(cls) -> str:
        """Return what users write, such as ``dataset:NAME[,CONFIG[,SPLIT]]``."""
        return f"{cls.name}:{cls.usage}" if cls.usage else cls.name

    @classmethod
    def summary(cls) -> str:
        """Return the first line of the docstring, for help."""
        line = (cls.__doc__ or "").strip().partition("\n")[0].rstrip(".")
        return line[:1].lower() + line[1:]

    def check(self, role: Role) -> None:
        """Raise :class:`CalibrationError` for mistakes that can be found without a model and without fetching anything."""

    def for_model(self, model: Any) -> BaseSource:  # noqa: ARG002 -- for sources that override this
        """Return the source to use for a model: by default this one."""
        return self

    def read(self, role: Role) -> tuple[str | list[str], str]:
        """Return the text, or a list of texts, and a description for reports."""
        raise NotImplementedError(f"{type(self).__name__} must override read() or sequences()")

    def sequences(self, request: Request) -> tuple[TokenSequences, TokenSequences | None]:
        """Return the sequences that are wanted, and the held-out ones or None."""
        return sequences_of_text(*self.read(request.role), request)
