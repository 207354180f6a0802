"""The report of a pipeline run: its protocol and its outcome."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from graphs.io.replacement import replace_file
from llmrank.evaluation.before_and_after import Evaluation
from llmrank.evaluation.perplexity import ModelSize
from llmrank.execution.json_files import json_safe
from llmrank.healing import Healing
from llmrank.models.costs import Unit, unit_name
from llmrank.pipeline.closeness.candidates import Choice
from llmrank.pipeline.closeness.repair_validation import Validation
from llmrank.pipeline.descriptions import environment
from llmrank.pipeline.printed import Printed, PrintedGroup

__all__ = [
    "Report",
]

# Version of the JSON that to_dict returns.
FORMAT = 1
# Units in which the report says how much of the model is removed.
MODEL_UNITS: tuple[Unit, ...] = ("parameters", "bytes", "flops", "cache")


@dataclass(repr=False)
class Report(Printed):
    """The protocol and the outcome of a run. Its repr, and what a notebook shows of it, is :meth:`table`.

    Attributes
    ----------
    model : dict
        Source, class, device and dtype, and the number and kinds of the FFNs.
    method : dict
        Pipeline, scorer, pruner and repair with their parameters, and the other settings.
    calibration : dict
        Provenance of the calibration tokens.
    held_out : dict, optional
        Provenance of the tokens held out from a repair.
    graph : dict
        Numbers of graphs, layers, nodes and possible edges, and how they were ranked: solver, iterations, error bound.
    neurons : dict
        Numbers of neurons before pruning and removed, the amount requested and the share reached, the width of every layer, the
        numbers of heads if attentions were pruned too, and how many decisions were close, see
        :func:`llmrank.pipeline.stages.close_decisions`.
    before, after : ModelSize
        Size of the dense and of the pruned model.
    seconds : dict from str to float
        Wall time of every stage.
    reached : dict from str to dict
        See :func:`llmrank.prune.budget.reached_amounts`. A unit of which the model has none has no entry.
    sensitivities : dict from str to float
        See :func:`llmrank.pipeline.closeness.sensitivity.layer_sensitivities`; empty unless the pruner needs them.
    repaired : dict
        For each repaired map the target and the damping of the fit, and the errors, see
        :class:`llmrank.repair.RepairedMap`.
    choice : dict, optional
        How the scorer was chosen, see :class:`llmrank.pipeline.closeness.candidates.Choice`.
    validation : dict, optional
        See :class:`llmrank.pipeline.closeness.repair_validation.Validation`.
    healing : Healing, optional
        What the model has learned from the dense one, see :mod:`llmrank.healing`.
    evaluation : Evaluation, optional
    execution : dict
        How the run computed, see :meth:`llmrank.execution.Execution.describe`.
    environment : dict
        Versions of packages and facts of the machine that can change results.
    notes : list of str
    config : dict, optional
        The options of the command that made the report; ``llmrank COMMAND --config report.json`` repeats it.
    loss_curves : dict, optional
        See :class:`llmrank.pipeline.closeness.loss_curves.LossCurves`, and the loss that is "expected" of the cut; only
        if the pruner needs it.
    """

    model: dict[str, Any]
    method: dict[str, Any]
    calibration: dict[str, Any]
    graph: dict[str, Any]
    neurons: dict[str, Any]
    before: ModelSize
    after: ModelSize
    seconds: dict[str, float]
    reached: dict[str, dict[str, float]] = field(default_factory=dict)
    sensitivities: dict[str, float] = field(default_factory=dict)
    repaired: dict[str, Any] = field(default_factory=dict)
    held_out: dict[str, Any] | None = None
    choice: dict[str, Any] | None = None
    validation: dict[str, Any] | None = None
    healing: Healing | None = None
    evaluation: Evaluation | None = None
    execution: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=environment)
    notes: list[str] = field(default_factory=list)
    config: dict[str, Any] | None = None
    loss_curves: dict[str, Any] | None = None

    def warnings(self) -> list[str]:
        """Return the notes, and the warnings of the evaluation and of the healing."""
        found = self.notes + (self.evaluation.warnings() if self.evaluation else [])
        return found + (self.healing.warnings() if self.healing else [])

    def to_dict(self) -> dict[str, Any]:
        """Return the report as values for JSON; non-finite numbers become strings."""
        plain = asdict(self)
        if self.evaluation is not None:
            plain["evaluation"]["collapsed"] = self.evaluation.collapsed
        if self.healing is not None:
            plain["healing"] = self.healing.to_dict()
        return dict(json_safe({"format": FORMAT, **plain, "warnings": self.warnings()}))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the report as JSON, completely or not at all."""
        with replace_file(Path(path)) as partial:
            partial.write_text(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")

    def __rich__(self) -> RenderableType:
        return self.table()

    def table(self) -> PrintedGroup:
        """Return the report as a table and sentences; rich, notebooks and sessions of Python print them."""
        table = Table(title=Text(f"{self.model['source']}: {self._headline()}"), title_justify="left")
        for heading in ("", "before", "after", "change"):
            table.add_column(heading, justify="left" if not heading else "right")
        counts = {self.neurons["unit"]: self.neurons} | {k: self.neurons[k] for k in ("heads",) if k in self.neurons}
        part = " and ".join("FFN" if unit != "heads" else "attention" for unit in counts)
        rows = [
            *((unit, each["before"], each["before"] - each["removed"], "{:,}") for unit, each in counts.items()),
            (f"{part} parameters", self.before.ffn_parameters, self.after.ffn_parameters, "{:,}"),
            (f"{part} bytes", self.before.ffn_bytes, self.after.ffn_bytes, "{:,}"),
            ("model parameters", self.before.parameters, self.after.parameters, "{:,}"),
            ("model bytes", self.before.bytes, self.after.bytes, "{:,}"),
        ]
        evaluation = self.evaluation
        if evaluation and evaluation.before and evaluation.after:
            rows.append(("perplexity", evaluation.before.value, evaluation.after.value, "{:,.2f}"))
        for name, before, after, number_format in rows:
            change = f"{after / before - 1.0:+.1%}" if before else ""
            table.add_row(name, number_format.format(before), number_format.format(after), change)
        parts: list[RenderableType] = [
            table,
            Text(f"{self._widths()}; calibrated on {self._tokens(self.calibration)}"),
        ]
        if self.reached:
            what = "blocks" if "left_out" in self.neurons else self.neurons["unit"]
            parts.append(Text(f"the removed {what} account for {self._reached()}"))
        if self.choice is not None:
            parts.append(Choice.of_dict(self.choice).table())
        if self.loss_curves is not None:
            parts.append(Text(f"expected loss of the cut: {self.loss_curves['expected']:.3g}"))
        if self.repaired:
            parts.append(Text(f"repaired by {self.method['repair']['name']}: {self._repair_errors()}"))
        if self.validation is not None and self.repaired:
            parts.append(Text(Validation(**self.validation).sentence()))
        if self.healing is not None:
            parts += self.healing.table()
        if evaluation:
            parts.append(Text(f"perplexity on {self._tokens(evaluation.protocol)}"))
        parts += [Text(f"Warning: {sentence}", style="bold yellow") for sentence in self.warnings()]
        return PrintedGroup(*parts)

    def _widths(self) -> str:
        """Return the smallest and the largest width, for FFNs and for attentions; or which blocks were left out."""
        if "left_out" in self.neurons:
            return f"without {', '.join(self.neurons['left_out']) or 'no block'}"
        attentions = set(self.model.get("attentions", ()))
        spreads = []
        for is_attention in (False, True):
            widths = sorted(w for name, w in self.neurons["widths"].items() if (name in attentions) == is_attention)
            if widths:
                spreads.append(f"{widths[0]}" if widths[0] == widths[-1] else f"{widths[0]} to {widths[-1]}")
        return (
            "widths "
            + " of FFNs and ".join(spreads)
            + (" of attentions (numbers that the output map reads)" if attentions else "")
        )

    def _reached(self) -> str:
        shares = [
            f"{self.reached[unit]['share']:.1%} of the {unit_name(unit)}"
            for unit in MODEL_UNITS
            if unit in self.reached
        ]
        return f"{', '.join(shares[:-1])} and {shares[-1]}"

    def _repair_errors(self) -> str:
        medians = []  # a few maps with tiny outputs would dominate a mean
        for name in ("held_out_error_when_cut", "held_out_error_when_repaired"):
            errors = [entry[name] for entry in self.repaired.values() if entry[name] is not None]
            if not errors:
                return "no token was held out to measure its error"
            medians.append(median(errors))
        return (
            f"as a share of what an FFN should return, the median error on held-out tokens is {medians[0]:.1%} without the "
            f"repair, and {medians[1]:.1%} with it (mean square)"
        )

    def _headline(self) -> str:
        method = self.method
        if "left_out" in self.neurons:
            return f"{self.neurons['share_reached']:.1%} of the blocks removed, those that cost least in turn"
        return (
            f"{self.neurons['share_reached']:.1%} of the {self.neurons['unit']} removed "
            f"({method['scorer']['name']}, {method['pipeline']}, {method['pruner']['name']})"
        )

    @staticmethod
    def _tokens(data: dict[str, Any]) -> str:
        return f"{data['sequences']} x {data['sequence_length']} tokens ({data['source']})"
