"""The closeness of a pruned model to the dense one, which ``python -m benchmarks.quality --metrics`` adds to its rows."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from llmrank.evaluation.fidelity import continuations, fidelity
from llmrank.evaluation.last_word import Passage, last_word
from llmrank.models.loading import LoadedModel
from llmrank.text import TokenSequences

# Entry of a row -> heading of its column, and whether the value is a share.
COLUMNS = {
    "kl": ("KL, nats", False),
    "top1": ("same top token", True),
    "last_word": ("last word", True),
    "greedy": ("common beginning", True),
}
PROMPTS, PROMPT_LENGTH, NEW_TOKENS = 16, 64, 32


class Closeness:
    """A copy of the dense model, made before pruning, and the texts on which other models are compared with it."""

    def __init__(self, loaded: LoadedModel, text: TokenSequences, passages: Sequence[Passage]) -> None:
        self.dense, self.tokenizer = copy.deepcopy(loaded.model), loaded.tokenizer
        self.text, self.passages = text, passages

    def protocol(self) -> dict[str, Any]:
        """Return the texts and the settings of the comparison."""
        return {
            "text": self.text.provenance(),
            "passages": len(self.passages),
            "greedy": {
                "share": "up to the first difference",
                "prompts": PROMPTS,
                "prompt_length": self._prompt(),
                "new_tokens": NEW_TOKENS,
            },
        }

    def of(self, model: Any) -> dict[str, Any]:
        """Return the entries of a row, each with its standard error."""
        compared = fidelity(self.dense, model, self.text)
        said = continuations(self.dense, model, self.text, PROMPTS, self._prompt(), NEW_TOKENS)
        found = {
            "kl": compared.divergence,
            "top1": compared.agreement,
            "last_word": last_word(model, self.tokenizer, self.passages).accuracy,
            "greedy": said.common_prefix,
        }
        return {name: asdict(estimate) for name, estimate in found.items()}

    def of_dense(self) -> dict[str, Any]:
        """Return the accuracy of the dense model on last words. The other measures compare with it and do not apply to it."""
        return asdict(last_word(self.dense, self.tokenizer, self.passages).accuracy)

    def _prompt(self) -> int:
        return min(PROMPT_LENGTH, self.text.length)


def columns(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the entries that at least one row has."""
    return [name for name in COLUMNS if any(name in row for row in rows)]


def cells(row: dict[str, Any], names: Sequence[str]) -> list[str]:
    """Return value and standard error of each entry; an empty string where the row was not measured."""
    found = []
    for name in names:
        entry = row.get(name)
        form = "{:.1%}" if COLUMNS[name][1] else "{:.3f}"
        values = [entry[part] for part in ("value", "error") if entry[part] is not None] if entry else []
        found.append(" ± ".join(form.format(value) for value in values))
    return found
