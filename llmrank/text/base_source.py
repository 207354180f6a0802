"""The base class of sources of text."""

from __future__ import annotations

from typing import Any, ClassVar

from llmrank.errors import CalibrationError
from llmrank.text.documents import Document, Documents
from llmrank.text.sequences import Request, Role, TokenSequences
from llmrank.text.tokenisation import sequences_of_text

__all__ = ["BaseSource", "check_not_empty"]


class BaseSource:
    """Base class of sources of text. Override :meth:`read`, or :meth:`sequences` if the tokens do not come from a text.

    Users choose a source by ``name``, or by ``name:argument`` if :attr:`usage` is not empty. The help of the command line says
    what the first line of the class's docstring says.

    Parameters
    ----------
    argument : str
        The text after the colon; empty if there is no colon.
    """

    name: ClassVar[str]
    # How help shows the argument, such as "NAME[,CONFIG]"; empty if the source takes none.
    usage: ClassVar[str] = ""
    # What the text may be used for.
    roles: ClassVar[tuple[Role, ...]] = ("calibration", "evaluation")

    def __init__(self, argument: str = "") -> None:
        self.argument = argument

    def __str__(self) -> str:
        return f"{self.name}:{self.argument}" if self.usage else self.name

    @classmethod
    def syntax(cls) -> str:
        """Return how users write the source."""
        return f"{cls.name}:{cls.usage}" if cls.usage else cls.name

    def check(self, role: Role) -> None:
        """Raise :class:`CalibrationError` for mistakes that can be found without a model and without a download."""

    def place(self) -> str | None:
        """Return the path, or the name on the hub, of rows that may change while the source keeps its name; None without any."""
        return None

    def for_model(self, model: Any) -> BaseSource:  # noqa: ARG002 -- for sources that override this
        """Return the source to use for a model, by default this source itself."""
        return self

    def read(self, role: Role) -> tuple[str | list[str] | Documents, str]:
        """Return the text (or a list of texts, or documents that are joined), and a description of it for reports."""
        raise NotImplementedError(
            f"{type(self).__name__} has no read(); override read(), or override sequences() and call that"
        )

    def sequences(self, request: Request) -> tuple[TokenSequences, TokenSequences | None]:
        """Return the sequences that a request asks for, and the held-out ones or None."""
        return sequences_of_text(*self.read(request.role), request)


def check_not_empty(text: Document | list[str] | None, description: str, role: Role) -> None:
    """Raise a CalibrationError for an empty text, or an empty list; the description says where it comes from."""
    if not text or (isinstance(text, str) and not text.strip()):
        raise CalibrationError(f"the {role} text ({description}) is empty; give a text of some thousand words")
