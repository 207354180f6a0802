"""How long the stages of a run take."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

__all__ = ["Stopwatch"]

logger = logging.getLogger(__name__)


class Stopwatch:
    """Adds up the seconds of stages.

    Attributes
    ----------
    seconds : dict from str to float
        By the name of the stage.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds of the work inside the context to those of a stage."""
        start = perf_counter()
        yield
        seconds = perf_counter() - start
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        logger.debug("%s took %.2f s", stage, seconds)
