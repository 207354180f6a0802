"""Report: what was done, with which protocol, and what came out."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from graphs.io.files import replacing
from llmrank.evaluation.perplexity import Perplexity, Size
from llmrank.models.costs import Unit, unit_name
from llmrank.pipeline.validation import Validation

__all__ = ["Evaluation", "Report", "environment", "finite"]

FORMAT = 1
MODEL_UNITS: tuple[Unit, ...] = ("parameters", "bytes", "flops")


def environment() -> dict[str, str]:
    """Versions and machine, as far as they can change a number."""
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "numpy", "scipy", "safetensors")}
    try:
        versions["llmrank"] = metadata.version("llmrank")
    except metadata.PackageNotFoundError:  # run from a source tree that is not installed
        versions["llmrank"] = "unknown"
    return {
        **versions,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": str(torch.get_num_threads()),
    }


@dataclass
class Evaluation:
    """Perplexity before and after on one text.

    Attributes
    ----------
    protocol : dict
        Provenance of the text, the dtype, and torch's seed.
    before, after : Perplexity or None
    unigram : float
        Perplexity of a unigram model of the same text: above it a model has collapsed.
    calibration_overlap : float
        Share of the text's passages that were calibrated on.
    """

    protocol: dict[str, Any]
    before: Perplexity | None = None
    after: Perplexity | None = None
    unigram: float = float("nan")
    calibration_overlap: float = 0.0

    @property
    def collapsed(self) -> bool:
        """Whether the pruned model is no better than token frequencies, and the dense model was."""
        if self.before is not None and self.before.value >= self.unigram:
            return False
        return self.after is not None and not self.after.value < self.unigram

    def warnings(self) -> list[str]:
        """Sentences that a reader must not miss."""
        found = []
        if self.calibration_overlap > 0:
            found.append(
                f"{self.calibration_overlap:.1%} of the evaluation passages occur in the calibration text: the "
                "perplexity flatters; evaluate on other text"
            )
        if self.collapsed and self.after is not None:
            unless = " (or the dense model was no better)" if self.before is None else ""
            found.append(
                f"the pruned model has collapsed{unless}: its perplexity {self.after.value:.4g} is not below that of token "
                f"frequencies alone ({self.unigram:.4g}); prune less"
            )
        return found


@dataclass
class Report:
    """Everything a reader needs to trust and repeat a run.

    Attributes
    ----------
    model : dict
        Source, class, device, dtype.
    method : dict
        Pipeline, scorer, pruner, form and their parameters.
    calibration : dict
        Provenance of the tokens.
    held_out : dict, optional
        Likewise, of what was held out from a repair: what follows in the text, or the last of the calibration sequences.
    graph : dict
        Nodes, layers, solver, iterations, error bound, seconds.
    neurons : dict
        Before, removed, the share asked for and reached, and the width of every layer.
    before, after : Size
    seconds : dict from str to float
        Wall time of every stage.
    reached : dict from str to dict
        For each unit that an amount can be of (see :data:`llmrank.models.costs.UNITS`) what there was ("before"), and what of
        it goes with the removed neurons where a model is really made smaller ("removed", "share").
    steps : list of dict
        See :class:`llmrank.prune.schedule.SolverStep`; one in one shot.
    sensitivities : dict from str to float
        For each prunable layer what its cut alone does to the output, see :mod:`llmrank.pipeline.sensitivity`; empty where the
        pruner did not ask for it.
    repaired : dict
        For each repaired map what it was fitted to, its damping, and its error on held-out calibration tokens as cut and as
        repaired, see :class:`llmrank.surgery.repair.RepairedMap`.
    validation : dict, optional
        See :class:`llmrank.pipeline.validation.Validation`.
    evaluation : Evaluation, optional
    environment : dict
    notes : list of str
    """

    model: dict[str, Any]
    method: dict[str, Any]
    calibration: dict[str, Any]
    graph: dict[str, Any]
    neurons: dict[str, Any]
    before: Size
    after: Size
    seconds: dict[str, float]
    reached: dict[str, dict[str, float]] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    sensitivities: dict[str, float] = field(default_factory=dict)
    repaired: dict[str, Any] = field(default_factory=dict)
    held_out: dict[str, Any] | None = None
    validation: dict[str, Any] | None = None
    evaluation: Evaluation | None = None
    environment: dict[str, str] = field(default_factory=environment)
    notes: list[str] = field(default_factory=list)

    def warnings(self) -> list[str]:
        """Sentences that a reader must not miss."""
        return self.notes + (self.evaluation.warnings() if self.evaluation else [])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; non-finite numbers become strings."""
        plain = asdict(self)
        if self.evaluation is not None:
            plain["evaluation"]["collapsed"] = self.evaluation.collapsed
        result = finite({"format": FORMAT, **plain, "warnings": self.warnings()})
        return dict(result)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``report.json``; replaced whole or not at all."""
        with replacing(Path(path)) as partial:
            partial.write_text(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")

    def table(self) -> RenderableType:
        """For a terminal, through rich."""
        method = self.method
        table = Table(title=Text(f"{self.model['source']}: {self._headline()}"), title_justify="left")
        for heading in ("", "before", "after", "change"):
            table.add_column(heading, justify="left" if not heading else "right")
        rows = [
            (self.neurons["unit"], self.neurons["before"], self.neurons["before"] - self.neurons["removed"], "{:,}"),
            ("FFN parameters", self.before.ffn_parameters, self.after.ffn_parameters, "{:,}"),
            ("FFN bytes", self.before.ffn_bytes, self.after.ffn_bytes, "{:,}"),
            ("model parameters", self.before.parameters, self.after.parameters, "{:,}"),
            ("model bytes", self.before.bytes, self.after.bytes, "{:,}"),
        ]
        evaluation = self.evaluation
        if evaluation and evaluation.before and evaluation.after:
            rows.append(("perplexity", evaluation.before.value, evaluation.after.value, "{:,.2f}"))
        for name, before, after, form in rows:
            change = f"{after / before - 1.0:+.1%}" if before else ""
            table.add_row(name, form.format(before), form.format(after), change)
        parts: list[RenderableType] = [table]
        widths = sorted(self.neurons["widths"].values())
        spread = f"{widths[0]}" if widths[0] == widths[-1] else f"{widths[0]} to {widths[-1]}"
        parts.append(Text(f"widths {spread}; calibrated on {self._tokens(self.calibration)}"))
        if self.reached:
            parts.append(Text(f"with the removed neurons go {self._reached()}"))
        if len(self.steps) > 1:
            parts.append(Text(f"cut in {len(self.steps)} steps: {self._steps()}"))
        if self.repaired:
            parts.append(Text(f"repaired by {method['repair']['name']}: {self._repair_errors()}"))
        if self.validation is not None and self.repaired:
            parts.append(Text(Validation(**self.validation).sentence()))
        if evaluation:
            parts.append(Text(f"perplexity on {self._tokens(evaluation.protocol)}"))
        parts += [Text(f"Warning: {sentence}", style="bold yellow") for sentence in self.warnings()]
        return Group(*parts)

    def _reached(self) -> str:
        """What the neurons were in the model's own units."""
        shares = [f"{self.reached[unit]['share']:.1%} of the {unit_name(unit)}" for unit in MODEL_UNITS]
        return f"{', '.join(shares[:-1])} and {shares[-1]}"

    def _repair_errors(self) -> str:
        """The median over all maps of their errors on held-out tokens: where a map gives little, its share can be huge."""
        shares = []
        for name in ("held_out_error_when_cut", "held_out_error_when_repaired"):
            found = [entry[name] for entry in self.repaired.values() if entry[name] is not None]
            if not found:
                return "no token was held out to measure its error"
            shares.append(median(found))
        return (
            f"on held-out calibration tokens the error of the median FFN was {shares[0]:.1%} of its output as cut, and is "
            f"{shares[1]:.1%} (mean square)"
        )

    def _steps(self) -> str:
        passes = sum(step["calibration_passes"] for step in self.steps)
        seconds = ", ".join(f"{sum(step['seconds'].values()):,.1f}" for step in self.steps)
        repairs = sum(step["repaired"] for step in self.steps)
        told = f" and {repairs} {'repair' if repairs == 1 else 'repairs'}" if repairs else ""
        return f"{passes} passes of the calibration text to rank by{told}; {seconds} s"

    def _headline(self) -> str:
        method = self.method
        return (
            f"{self.neurons['share_reached']:.1%} of the {self.neurons['unit']} removed "
            f"({method['scorer']['name']}, {method['pipeline']}, {method['pruner']['name']})"
        )

    @staticmethod
    def _tokens(data: dict[str, Any]) -> str:
        return f"{data['sequences']} x {data['sequence_length']} tokens ({data['source']})"


def finite(value: Any) -> Any:
    """A value as strict JSON can hold it.

    Parameters
    ----------
    value : any
        Mappings, lists and tuples are gone through.

    Returns
    -------
    any
        Numbers that are not finite, and whatever JSON has no form for, become strings.

    Examples
    --------
    >>> finite({"perplexity": float("inf"), "widths": (3, 4)})
    {'perplexity': 'inf', 'widths': [3, 4]}
    """
    if isinstance(value, dict):
        return {str(key): finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    # Scorers and pruners of third parties keep what they like in their attributes.
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)
