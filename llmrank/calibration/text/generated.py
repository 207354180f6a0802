"""Calibration text that a model writes, and the automatic choice between it and the built-in text."""

from __future__ import annotations

from typing import Any, ClassVar

from llmrank.calibration.generation import can_write_text, generate_text
from llmrank.calibration.text.base_source import BaseSource
from llmrank.calibration.text.built_in import BuiltInText
from llmrank.calibration.text.sequences import Request, Role, TokenSequences
from llmrank.errors import CalibrationError

__all__ = ["Automatic", "Generated"]


class Generated(BaseSource):
    """Text that the model writes itself."""

    name: ClassVar[str] = "generated"
    roles: ClassVar[tuple[Role, ...]] = ("calibration",)

    def sequences(self, request: Request) -> tuple[TokenSequences, TokenSequences | None]:
        """See :meth:`BaseSource.sequences`."""
        if request.model is None:
            raise CalibrationError(
                f"the text {self.name!r} is written by a model, and none was given; pass a text or a file"
            )
        sequences = generate_text(
            request.model,
            request.tokenizer,
            request.samples + request.held_out,
            request.length,
            request.seed,
            progress=request.progress,
        )
        return sequences.split(request.samples)


class Automatic(BaseSource):
    """Generated if the model can write text, else built-in."""

    name: ClassVar[str] = "auto"
    roles: ClassVar[tuple[Role, ...]] = ("calibration",)

    def for_model(self, model: Any) -> BaseSource:
        """See :meth:`BaseSource.for_model`."""
        return Generated() if model is not None and can_write_text(model) else BuiltInText()

    def sequences(self, request: Request) -> tuple[TokenSequences, TokenSequences | None]:
        """See :meth:`BaseSource.sequences`."""
        return self.for_model(request.model).sequences(request)
