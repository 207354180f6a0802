"""The result of a sweep: its rows, and how they are shown."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from llmrank.experiments.sweep_folder import read_rows
from llmrank.pipeline.printed import Printed, PrintedGroup

__all__ = ["SweepResult", "method_of"]

METHOD = ("scorer", "pruner", "pipeline", "repair", "heal")
# Largest difference between the removed share and the amount that rounding to whole neurons explains.
LARGEST_ROUNDING = 0.005


def method_of(row: Mapping[str, Any], names: Sequence[str] = METHOD) -> str:
    """Return the method of a row in words: its settings `names`, joined by commas. The method of the dense model is "dense".

    Examples
    --------
    >>> method_of({"scorer": "wpr", "pruner": "local", "pipeline": "isolated", "repair": "none"}, ["scorer", "repair"])
    'wpr, as cut'
    """
    if row["scorer"] is None:
        return "dense"
    tokens = row.get("heal", 0)
    words = {"heal": f"healed with {tokens:,} tokens" if tokens else ""}
    if row["repair"] == "none":
        words["repair"] = "as cut"
    return ", ".join(filter(None, (words.get(name, str(row.get(name))) for name in names))) or "not healed"


@dataclass(frozen=True, eq=False, repr=False)
class SweepResult(Printed):
    """The rows of a sweep.

    Attributes
    ----------
    rows : list of dict
        The lines of the file ``rows.jsonl``, in the order in which they were measured. The first row of a model is the dense
        model. A row that failed has an "error" and no results.
    directory : Path
        The directory of the sweep.
    """

    rows: list[dict[str, Any]]
    directory: Path

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> SweepResult:
        """Read the rows that a sweep has measured so far.

        Raises
        ------
        OptionError
            The directory is not that of a sweep, or a line is damaged.
        """
        return cls(read_rows(directory), Path(directory))

    @property
    def failed(self) -> list[dict[str, Any]]:
        """The rows that failed."""
        return [row for row in self.rows if "error" in row]

    def table(self) -> Table:
        """Return the rows as a table for a terminal, printed by rich.

        For every model the dense model comes first. The other rows are ordered by amount, and rows of one amount by perplexity,
        the lowest first. Settings that are the same in all pruned rows are left out.
        """
        rows = sorted(self.rows, key=self._order)
        pruned = [row for row in rows if row["scorer"] is not None]
        names = [name for name in METHOD if len({row.get(name, 0) for row in pruned}) > 1] or ["scorer"]
        show_model = len({row["model"] for row in rows}) > 1
        tasks = sorted({task for row in rows for task in row.get("tasks", {})})
        # If every removed share is close to its amount, a column of removed shares would repeat the column of amounts.
        show_removed = any(
            abs(row["removed"] - row["amount"]) > LARGEST_ROUNDING for row in pruned if "error" not in row
        )
        show_items, show_speed = (any(name in row for row in rows) for name in ("items", "speed"))
        caption = CAPTION + SPEED_CAPTION * show_speed
        table = Table(box=box.SIMPLE, caption_justify="left", caption=caption, pad_edge=False, collapse_padding=True)
        for heading in [*["model"] * show_model, ", ".join(names)]:
            table.add_column(heading, overflow="fold", min_width=12)
        headings = ["amount", *["removed"] * show_removed, "perplexity", "change, nats", "parameters"]
        for heading in [*headings, *["items kept"] * show_items, *tasks, *["speed"] * show_speed]:
            table.add_column(heading, justify="right", no_wrap=True)
        for number, row in enumerate(rows):
            cells = [
                *[row["model"]] * show_model,
                method_of(row, names),
                "" if row["amount"] is None else str(row["amount"]),
            ]
            if "error" in row:
                cells += [*[""] * show_removed, "failed"]
            else:
                cells += [f"{row['removed']:.1%}"] * show_removed + _numbers(row, tasks)
            following = rows[number + 1] if number + 1 < len(rows) else row
            changes = any(row[name] != following[name] for name in ("model", "amount"))
            table.add_row(*map(Text, cells), end_section=changes)
        return table

    def errors(self) -> list[str]:
        """Return one sentence for every row that failed."""
        return [
            f"{row['model']}, {method_of(row)}{'' if row['amount'] is None else ', ' + str(row['amount'])}: {row['error']}"
            for row in self.failed
        ]

    def warnings(self) -> list[str]:
        """Return sentences that a reader of the perplexities must not miss."""
        overlaps: dict[str, float] = {}
        healed: dict[str, float] = {}
        for row in self.rows:
            most = healed if row.get("heal") else overlaps
            most[row["model"]] = max(most.get(row["model"], 0.0), row.get("calibration_overlap", 0.0))
        sentences = [
            f"{model}: {share:.1%} of the evaluation passages occur in the calibration text, so perplexities are too "
            "low; evaluate on other text"
            for model, share in overlaps.items()
            if share > 0
        ]
        sentences += [
            f"{model}: {share:.1%} of the evaluation passages occur in the text that healed rows have read, so their "
            "perplexities are too low; evaluate on other text"
            for model, share in healed.items()
            if share > overlaps.get(model, 0.0)
        ]
        # Versions can differ if a sweep was continued after an update, or on another machine.
        versions: dict[str, dict[str, None]] = {}
        for row in self.rows:
            for name, version in row.get("versions", {}).items():
                versions.setdefault(name, {})[version] = None
        return sentences + [
            f"rows were measured with different {name} ({', '.join(found)}), which can change results a little; measure "
            "anew to compare small differences"
            for name, found in versions.items()
            if len(found) > 1
        ]

    def __rich__(self) -> PrintedGroup:
        return PrintedGroup(self.table(), *map(Text, [*self.warnings(), *self.errors()]))

    def _order(self, row: dict[str, Any]) -> tuple[Any, ...]:
        models = list(dict.fromkeys(each["model"] for each in self.rows))
        return (
            models.index(row["model"]),
            row["scorer"] is not None,
            row["amount"] or 0,
            "error" in row,
            float(row.get("perplexity", "inf")),
        )


CAPTION = (
    "Perplexity: lower is better. Change: mean difference from the dense model in nats per token ± its standard error over "
    "sequences."
)
SPEED_CAPTION = " Speed: that of the dense model is 1; both are measured in alternation."


def _numbers(row: dict[str, Any], tasks: Sequence[str]) -> list[str]:
    """Return the cells of a row's results, from the perplexity on."""
    change = row.get("difference")
    error = "" if change is None or change["error"] is None else f" ± {float(change['error']):.3f}"
    cells = [
        f"{float(row['perplexity']):,.2f}",
        "" if change is None else f"{float(change['value']):+.3f}{error}",
        f"{row['parameters'] / 1e6:,.1f} M",
    ]
    if "items" in row:
        kept = row["items"].get("kept")
        share = (kept or row["items"]["accuracy"])["all"]
        error = "" if share["error"] is None else f" ± {share['error']:.1%}"
        cells.append(f"{share['value']:.1%}{error if kept else ' right'}")
    for task in tasks:
        metrics = row.get("tasks", {}).get(task, {})
        metric = next((name for name in MAIN_METRICS if name in metrics), next(iter(metrics), None))
        cells.append("" if metric is None else f"{float(metrics[metric]['value']):.3f} {metric}")
    if "speed" in row:
        cells.append(f"{row['speed']['ratio']:.2f}")
    return cells


# A table shows one metric for each task: the first of these that the task has.
MAIN_METRICS = ("acc_norm", "acc", "word_perplexity")
