"""Text files, files of JSON lines, and directories of both."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmrank.errors import CalibrationError
from llmrank.text.base_source import BaseSource, check_not_empty
from llmrank.text.documents import Document, Documents, document_of
from llmrank.text.sequences import Role

__all__ = ["ENDINGS", "TextFiles"]

# Files of a directory with another ending are left out.
ENDINGS = (".txt", ".md", ".jsonl")
# UTF-8 with or without a byte order mark, which programs for Windows write, and which is no part of the text.
ENCODING = "utf-8-sig"


class TextFiles(BaseSource):
    """A text file, a file of JSON lines, or a directory with such files.

    Parameters
    ----------
    path : path-like
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        self.path = Path(path)

    def __str__(self) -> str:
        return str(self.path)

    def check(self, role: Role) -> None:
        """Read the text, or the first document if there are documents, and check that it is not empty."""
        text = self.read(role)[0]
        check_not_empty(next(iter(text), None) if isinstance(text, Documents) else text, self._description, role)

    def read(self, role: Role) -> tuple[str | Documents, str]:
        """See :meth:`BaseSource.read`; a text file is one text, and anything else is documents."""
        if self.path.is_dir():
            files = self._files()
            return Documents(lambda: (entry for file in files for entry in _documents(file, role))), self._description
        if not self.path.is_file():
            raise CalibrationError(
                f"no {role} text at {self.path}; expected the path of a text file (UTF-8), of a .jsonl file, of a directory of "
                "such files, or dataset:NAME for a dataset"
            )
        if _is_json_lines(self.path):
            return Documents(lambda: _documents(self.path, role)), self._description
        return _text(self.path, role), self._description

    @property
    def _description(self) -> str:
        return f"{'directory' if self.path.is_dir() else 'file'} {self.path.resolve().name}"

    def _files(self) -> list[Path]:
        """Return the files of a directory and of all directories in it, in the order of their names, without hidden files."""
        found = [path.relative_to(self.path) for path in self.path.rglob("*") if path.suffix.lower() in ENDINGS]
        shown = sorted(name.parts for name in found if not any(part.startswith(".") for part in name.parts))
        files = [path for parts in shown if (path := self.path.joinpath(*parts)).is_file()]
        if not files:
            raise CalibrationError(
                f"the directory {self.path} has no file that ends with {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}; expected "
                "some with text (UTF-8)"
            )
        return files


def _is_json_lines(path: Path) -> bool:
    return path.suffix.lower() == ".jsonl"


def _documents(path: Path, role: Role) -> Iterator[Document]:
    """Yield the documents of a file: every line of a file of JSON lines, or all of a text file."""
    if not _is_json_lines(path):
        yield _text(path, role)
        return
    try:
        with path.open(encoding=ENCODING) as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    origin = f"line {number} of {path.name}"
                    yield document_of(_parsed(line, origin), origin)
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, role, error) from error


def _parsed(line: str, origin: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:  # also of a number with thousands of digits, and of nested brackets
        raise CalibrationError(
            f"{origin} is no JSON ({error}); expected an object with messages or text in every line"
        ) from error


def _text(path: Path, role: Role) -> str:
    try:
        return path.read_text(encoding=ENCODING)
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, role, error) from error


def _unreadable(path: Path, role: Role, error: Exception) -> CalibrationError:
    return CalibrationError(
        f"cannot read {path} as UTF-8 text ({error}); pass a {role} text in UTF-8 that you can read"
    )
