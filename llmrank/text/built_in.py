"""The built-in text."""

from __future__ import annotations

from typing import ClassVar

from llmrank.text.base_source import BaseSource
from llmrank.text.sequences import Role

__all__ = ["BuiltInText", "builtin_texts"]

# Every fourth topic is reserved for evaluation.
EVALUATION_STRIDE = 4


class BuiltInText(BaseSource):
    """The topics of Python's ``help()``: most of its language reference."""

    name: ClassVar[str] = "built-in"

    def read(self, role: Role) -> tuple[str, str]:
        """See :meth:`BaseSource.read`."""
        text = builtin_texts()[0 if role == "calibration" else 1]
        return text, f"{self.name}: the Python language reference (pydoc_data.topics), {role} part"


def builtin_texts() -> tuple[str, str]:
    """Return the built-in text in two parts (calibration, evaluation) that share no paragraph.

    The text is ``pydoc_data.topics``, the topics of Python's ``help()``. A paragraph that appears several times is used once.
    """
    from pydoc_data.topics import topics

    seen: set[str] = set()
    parts: tuple[list[str], list[str]] = ([], [])
    for position, name in enumerate(sorted(topics)):
        part = parts[1 if position % EVALUATION_STRIDE == EVALUATION_STRIDE - 1 else 0]
        for paragraph in topics[name].split("\n\n"):
            key = " ".join(paragraph.split())
            if key and key not in seen:
                seen.add(key)
                part.append(paragraph.strip("\n"))
    return "\n\n".join(parts[0]), "\n\n".join(parts[1])
