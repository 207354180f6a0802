"""Datasets as a source of text, from the Hugging Face hub or from a directory."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from itertools import islice
from typing import Any, ClassVar

from llmrank.errors import CalibrationError
from llmrank.text.base_source import BaseSource
from llmrank.text.documents import Documents, document_of
from llmrank.text.places import without_folders
from llmrank.text.sequences import Request, Role, TokenSequences
from llmrank.text.tokenisation import sequences_of_text

__all__ = ["Dataset"]

# Options that shuffle a stream of rows: each row is drawn at random from a buffer of 1000 rows, which are read from one file at a
# time. The files of large datasets have more rows, so only the beginning of one file is read.
SHUFFLE_OPTIONS = {"buffer_size": 1000, "max_buffer_input_shards": 1}


class Dataset(BaseSource):
    """Rows of a dataset of the Hugging Face hub or of a directory.

    Each row is a document: a conversation if there is a column ``messages``, else the text in the column ``text``, ``content`` or
    ``document`` (the first of these that there is). The seed decides the order of the rows, and only as many are read as needed.
    """

    name: ClassVar[str] = "dataset"
    usage: ClassVar[str] = "NAME[,CONFIG[,SPLIT]]"

    def check(self, role: Role) -> None:
        """Check the argument, and that the datasets package is installed."""
        self._parts(role)
        if find_spec("datasets") is None:
            raise self._no_package()

    def place(self) -> str:
        """See :meth:`BaseSource.place`."""
        return self.argument.partition(",")[0]

    def read(self, role: Role, seed: int = 0) -> tuple[Documents, str]:
        """See :meth:`BaseSource.read`; rows come from the split ``train``, unless the user has named another split."""
        origin = f"dataset {self._parts(role)[0]!r}"
        return Documents(lambda: (document_of(row, origin) for row in self._rows(role, seed))), without_folders(
            str(self)
        )

    def sequences(self, request: Request) -> tuple[TokenSequences, TokenSequences | None]:
        """See :meth:`BaseSource.sequences`."""
        return sequences_of_text(*self.read(request.role, request.seed), request)

    def _rows(self, role: Role, seed: int) -> Iterator[Any]:
        """Yield the rows in random order. They are streamed if the dataset allows it, so that only a part is downloaded."""
        try:
            import datasets
        except ImportError as error:
            raise self._no_package() from error
        name, config, split = self._parts(role)

        def rows(**options: Any) -> Iterator[Any]:
            loaded: Any = datasets.load_dataset(name, config or None, split=split, **options)
            return iter(loaded.shuffle(seed=seed, **(SHUFFLE_OPTIONS if options else {})))

        # Streams know neither parts (train[:10%]) nor unions (train+test) of splits.
        streamable = not set(split) & set("[+")
        try:
            try:
                stream = rows(streaming=True) if streamable else rows()
                # A dataset that cannot be streamed may say so at its first row.
                first = [*islice(stream, 1)]
            except NotImplementedError:
                # Only this error leads to a complete download. After others, such as a failed connection, all of a large dataset
                # would be downloaded, and its rows would come in another order.
                first, stream = [], rows()
            yield from first
            yield from stream
        except Exception as error:
            raise CalibrationError(
                f"cannot load dataset {name!r}, split {split!r}: {str(error).splitlines()[0] if str(error) else error}; "
                f"expected {self.syntax()}, or pass a text file"
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
