"""Datasets of the Hugging Face hub."""

from __future__ import annotations

from importlib.util import find_spec
from typing import ClassVar

from llmrank.calibration.text.base_source import BaseSource
from llmrank.calibration.text.sequences import Role
from llmrank.errors import CalibrationError

__all__ = ["Dataset"]

# Columns that hold text; the first one that a dataset has is read.
COLUMNS = ("text", "content", "document")


class Dataset(BaseSource):
    """A dataset of the Hugging Face hub."""

    name: ClassVar[str] = "dataset"
    usage: ClassVar[str] = "NAME[,CONFIG[,SPLIT]]"

    def check(self, role: Role) -> None:
        """Check the argument, and that the datasets package is installed."""
        self._parts(role)
        if find_spec("datasets") is None:
            raise self._no_package()

    def read(self, role: Role) -> tuple[list[str], str]:
        """See :meth:`BaseSource.read`; all rows of the split (``train`` by default) are joined to one text."""
        try:
            import datasets
        except ImportError as error:
            raise self._no_package() from error
        name, config, split = self._parts(role)
        try:
            rows = datasets.load_dataset(name, config or None, split=split)
        except Exception as error:
            raise CalibrationError(
                f"cannot load dataset {name!r}, split {split!r}: {str(error).splitlines()[0] if str(error) else error}; "
                f"expected {self.syntax()}, or pass a text file"
            ) from error
        column = next((c for c in COLUMNS if c in rows.column_names), None)
        if column is None:
            raise CalibrationError(
                f"dataset {name!r} has no column {', '.join(COLUMNS[:-1])} or {COLUMNS[-1]}, but {rows.column_names}; save the "
                "text you want to a file and pass that"
            )
        try:
            return ["".join(rows[column])], str(self)
        except TypeError as error:
            raise CalibrationError(
                f"column {column!r} of dataset {name!r} does not hold text alone ({error}); save the text you want to a file and "
                "pass that"
            ) from error

    def _parts(self, role: Role) -> tuple[str, str, str]:
        """Return name, configuration ("" if none is given) and split of the dataset."""
        name, *others = self.argument.split(",")
        if not name.strip() or len(others) > 2:
            raise CalibrationError(f"expected {self.syntax()}, got {str(self)!r} as {role} text")
        config, split = [*others, "", ""][:2]
        return name, config, split or "train"

    def _no_package(self) -> CalibrationError:
        return CalibrationError(
            f"{self} needs the datasets package; pip install 'llmrank[datasets]', or pass a text file"
        )
