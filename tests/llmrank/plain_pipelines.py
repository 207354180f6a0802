"""Pipelines whose defaults are plain: one scorer, no repair and the built-in text, so that a test sees one thing at a time."""

from __future__ import annotations

from typing import Any

from llmrank import pipeline
from llmrank.score.pagerank import default_scorer


class _Plain:
    def __init__(
        self, model: Any, tokenizer: Any, structure_dict: Any = None, scorer: Any = None, *more: Any, **options: Any
    ) -> None:
        scorer = default_scorer(whole_ffns=structure_dict is None) if scorer is None else scorer
        plain = {"repair": None, "calibration": "built-in"}
        super().__init__(model, tokenizer, structure_dict, scorer, *more, **{**plain, **options})  # type: ignore[call-arg]


class IsolatedFFNPipeline(_Plain, pipeline.IsolatedFFNPipeline):
    pass


class ChainedFFNPipeline(_Plain, pipeline.ChainedFFNPipeline):
    pass


class ResidualFFNPipeline(_Plain, pipeline.ResidualFFNPipeline):
    pass
