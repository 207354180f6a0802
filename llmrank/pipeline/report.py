"""The report of a pipeline run: its protocol and its outcome."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console, Group, RenderableType
from rich.jupyter import JupyterMixin
from rich.table import Table
from rich.text import Text
from torch import nn

from graphs import RankResult
from graphs.io.replacement import replace_file
from llmrank.evaluation.perplexity import ModelSize, Perplexity
from llmrank.models import FFNs
from llmrank.models.costs import Unit, unit_name
from llmrank.models.forward import input_device
from llmrank.pipeline.closeness.candidates import Choice
from llmrank.pipeline.closeness.repair_validation import Validation
from llmrank.prune import BasePruner, record_of_size, round_width
from llmrank.prune.masks import Masks
from llmrank.prune.records.units import Target
from llmrank.repair import BaseRepair
from llmrank.score import BaseScorer
from llmrank.score.model_graph import ModelGraph

__all__ = [
    "Evaluation",
    "Printed",
    "PrintedGroup",
    "Report",
    "describe_graphs",
    "describe_model",
    "describe_neurons",
    "dtype_name",
    "environment",
    "expected_widths",
    "json_safe",
    "model_source",
    "repair_notes",
    "token_warning",
]

# Version of the JSON that to_dict returns.
FORMAT = 1
# Units in which the report says how much of the model is removed.
MODEL_UNITS: tuple[Unit, ...] = ("parameters", "bytes", "flops")


def environment() -> dict[str, str]:
    """Return the versions of packages, and the facts of the machine, that can change results."""
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
    """Perplexity on one text, before and after pruning.

    Attributes
    ----------
    protocol : dict
        Provenance of the text and, in a report, the dtype and torch's seed.
    before, after : Perplexity or None
        Perplexity of the dense and of the pruned model; None if not measured.
    unigram : float
        Perplexity of a unigram model of the same text; a model that is not below it has collapsed. NaN if not measured.
    calibration_overlap : float
        Share of the text's passages that occur in the calibration text.
    """

    protocol: dict[str, Any]
    before: Perplexity | None = None
    after: Perplexity | None = None
    unigram: float = float("nan")
    calibration_overlap: float = 0.0

    @property
    def collapsed(self) -> bool:
        """Whether the pruned model is no better than token frequencies, and the dense model was better (or not measured)."""
        if self.before is not None and self.before.value >= self.unigram:
            return False
        return self.after is not None and (not math.isfinite(self.after.value) or self.after.value >= self.unigram)

    def warnings(self) -> list[str]:
        """Return sentences that a reader must not miss."""
        sentences = []
        if self.calibration_overlap > 0:
            sentences.append(
                f"{self.calibration_overlap:.1%} of the evaluation passages occur in the calibration text, so the "
                "perplexity is too low; evaluate on other text"
            )
        if self.collapsed and self.after is not None:
            unless = " (or the dense model was no better)" if self.before is None else ""
            reason = f"is {self.after.value}"
            if math.isfinite(self.after.value):
                reason = f"{self.after.value:.4g} is not below that of token frequencies alone ({self.unigram:.4g})"
            sentences.append(f"the pruned model has collapsed{unless}: its perplexity {reason}; prune less")
        return sentences


class Printed(JupyterMixin):
    """Something that rich prints: a notebook shows it as HTML, and a session of Python shows its text instead of a repr."""

    def __repr__(self) -> str:
        console = Console(color_system=None, force_terminal=False, force_jupyter=False)
        with console.capture() as captured:
            console.print(self)
        return captured.get().rstrip("\n")


class PrintedGroup(Printed, Group):
    """Tables and sentences below each other."""


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
        Numbers of neurons before pruning and removed, the amount requested and the share reached, and the width of every layer.
    before, after : ModelSize
        Size of the dense and of the pruned model.
    seconds : dict from str to float
        Wall time of every stage.
    reached : dict from str to dict
        See :func:`llmrank.prune.budget.reached_amounts`.
    steps : list of dict
        One :class:`llmrank.prune.schedule.ScheduleStep` for each step, as a dict.
    sensitivities : dict from str to float
        See :func:`llmrank.pipeline.closeness.sensitivity.layer_sensitivities`; empty unless the pruner needs them.
    repaired : dict
        For each repaired map the target and the damping of the fit, and the errors, see
        :class:`llmrank.repair.RepairedMap`.
    choice : dict, optional
        How the scorer was chosen, see :class:`llmrank.pipeline.closeness.candidates.Choice`.
    validation : dict, optional
        See :class:`llmrank.pipeline.closeness.repair_validation.Validation`.
    evaluation : Evaluation, optional
    environment : dict
    notes : list of str
    config : dict, optional
        The options of the command that made the report; ``llmrank COMMAND --config report.json`` repeats it.
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
    steps: list[dict[str, Any]] = field(default_factory=list)
    sensitivities: dict[str, float] = field(default_factory=dict)
    repaired: dict[str, Any] = field(default_factory=dict)
    held_out: dict[str, Any] | None = None
    choice: dict[str, Any] | None = None
    validation: dict[str, Any] | None = None
    evaluation: Evaluation | None = None
    environment: dict[str, str] = field(default_factory=environment)
    notes: list[str] = field(default_factory=list)
    config: dict[str, Any] | None = None

    def warnings(self) -> list[str]:
        """Return the notes, and the warnings of the evaluation."""
        return self.notes + (self.evaluation.warnings() if self.evaluation else [])

    def to_dict(self) -> dict[str, Any]:
        """Return the report as values for JSON; non-finite numbers become strings."""
        plain = asdict(self)
        if self.evaluation is not None:
            plain["evaluation"]["collapsed"] = self.evaluation.collapsed
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
        for name, before, after, number_format in rows:
            change = f"{after / before - 1.0:+.1%}" if before else ""
            table.add_row(name, number_format.format(before), number_format.format(after), change)
        widths = sorted(self.neurons["widths"].values())
        spread = f"{widths[0]}" if widths[0] == widths[-1] else f"{widths[0]} to {widths[-1]}"
        parts: list[RenderableType] = [table, Text(f"widths {spread}; calibrated on {self._tokens(self.calibration)}")]
        if self.reached:
            parts.append(Text(f"the removed neurons account for {self._reached()}"))
        if self.choice is not None:
            parts.append(Choice.of_dict(self.choice).table())
        if len(self.steps) > 1:
            parts.append(Text(f"pruned in {len(self.steps)} steps: {self._steps()}"))
        if self.repaired:
            parts.append(Text(f"repaired by {self.method['repair']['name']}: {self._repair_errors()}"))
        if self.validation is not None and self.repaired:
            parts.append(Text(Validation(**self.validation).sentence()))
        if evaluation:
            parts.append(Text(f"perplexity on {self._tokens(evaluation.protocol)}"))
        parts += [Text(f"Warning: {sentence}", style="bold yellow") for sentence in self.warnings()]
        return PrintedGroup(*parts)

    def _reached(self) -> str:
        shares = [f"{self.reached[unit]['share']:.1%} of the {unit_name(unit)}" for unit in MODEL_UNITS]
        return f"{', '.join(shares[:-1])} and {shares[-1]}"

    def _repair_errors(self) -> str:
        medians = []  # a few maps with tiny outputs would dominate a mean
        for name in ("held_out_error_when_cut", "held_out_error_when_repaired"):
            errors = [entry[name] for entry in self.repaired.values() if entry[name] is not None]
            if not errors:
                return "no token was held out to measure its error"
            medians.append(median(errors))
        return (
            f"on held-out calibration tokens the median error of an FFN is {medians[0]:.1%} of its output without the repair, "
            f"and {medians[1]:.1%} with it (mean square)"
        )

    def _steps(self) -> str:
        seconds = ", ".join(f"{sum(step['seconds'].values()):,.1f}" for step in self.steps)
        repairs = sum(step["repaired"] for step in self.steps)
        repaired = f", {repairs} {'repair' if repairs == 1 else 'repairs'}" if repairs else ""
        return f"{len(self.steps)} passes of the calibration text to rank by{repaired}; seconds of the steps: {seconds}"

    def _headline(self) -> str:
        method = self.method
        return (
            f"{self.neurons['share_reached']:.1%} of the {self.neurons['unit']} removed "
            f"({method['scorer']['name']}, {method['pipeline']}, {method['pruner']['name']})"
        )

    @staticmethod
    def _tokens(data: dict[str, Any]) -> str:
        return f"{data['sequences']} x {data['sequence_length']} tokens ({data['source']})"


def describe_model(model: nn.Module, ffns: FFNs) -> dict[str, Any]:
    """Describe a model and what was found in it."""
    return {
        "source": model_source(model),
        "class": type(model).__name__,
        "ffns": len(ffns),
        "kinds": sorted({ffn.kind for ffn in ffns}),
        "device": str(input_device(model)),
        "dtype": dtype_name(model),
    }


def describe_graphs(model_graphs: Sequence[ModelGraph], ranks: Sequence[RankResult]) -> dict[str, Any]:
    """Describe the sizes of the graphs, and how they were ranked."""
    graphs = [entry.graph for entry in model_graphs]
    return {
        "graphs": len(graphs),
        "layers": sum(len(graph.layer_sizes) for graph in graphs),
        "nodes": sum(graph.n_nodes for graph in graphs),
        "edges_at_most": sum(graph.capacity for graph in graphs),
        "solver": ranks[0].solver,
        "backend": ranks[0].backend,
        "iterations": max(rank.iterations for rank in ranks),
        "converged": all(rank.converged for rank in ranks),
        "error_bound": max(rank.error_bound for rank in ranks),
    }


def describe_neurons(masks: Masks, pruner: BasePruner, ffns: FFNs) -> dict[str, Any]:
    """Describe how many neurons there are, how many were to be removed, and how many are removed."""
    return {
        "unit": "rows of the listed Linears" if ffns.explicit else "hidden neurons",
        "before": masks.size,
        "removed": masks.size - masks.kept,
        "amount_asked": pruner.amount,
        "amount_of": pruner.amount_of,
        "share_reached": masks.removed_share,
        "widths": masks.widths,
    }


def choice_notes(candidates: Sequence[BaseScorer], choice: Choice | None, removed: float) -> list[str]:
    """Return a note if a scorer was to be chosen, and could not be; and the warnings of the choice."""
    if choice is not None:
        return choice.warnings(removed)
    if len(candidates) == 1:
        return []
    first = candidates[0].label()
    return [f"nothing could be held out, so no scorer was tried: the first candidate, {first}, ranked; give more text"]


def repair_notes(repair: BaseRepair | None, validation: Validation | None, too_few_tokens: str | None) -> list[str]:
    """Return notes if a repair is fitted to too few tokens, does harm, or could not be checked."""
    notes = [] if too_few_tokens is None else [too_few_tokens]
    if validation is not None and not validation.improves:
        notes.append(validation.sentence())
    elif repair is not None and validation is None:
        notes.append(
            "nothing could be held out, so the damping of the repair was chosen on the text that it is fitted to, and the repair "
            "was not checked; give more text"
        )
    return notes


def token_warning(
    repair: BaseRepair | None,
    pruner: BasePruner,
    ffns: FFNs,
    tokens: int,
    length: int,
    targets: Sequence[Target] = ("neurons",),
) -> str | None:
    """Return a warning if `tokens`, in sequences of `length` tokens, are too few to fit a repair well; else None.

    An expert is taken to get the share of the tokens that a router sends it if it chooses all experts equally often.
    """
    if repair is None:
        return None
    wanted, kept, routed = 0, 0, ""
    widths = expected_widths(pruner, ffns, targets)
    for name, layer in ffns.layers.items():
        width = widths[name]
        share = Fraction(1) if layer.mixture is None else Fraction(layer.mixture.top_k, layer.mixture.n_experts)
        fewest = math.ceil(repair.tokens_wanted(width) / share)
        if fewest > wanted:
            wanted, kept = fewest, width
            routed = "" if share == 1 else f" of an expert, which gets {float(share):.0%} of them"
    if tokens >= wanted:
        return None
    return (
        f"The repair is fitted to {tokens:,} calibration tokens for {kept:,} neurons{routed or ' of a layer'}, which is few: "
        f"give {wanted:,} or more (--samples {-(-wanted // length)} of {length:,} tokens)."
    )


def expected_widths(pruner: BasePruner, ffns: FFNs, targets: Sequence[Target] = ("neurons",)) -> dict[str, int]:
    """Estimate the neurons that each layer keeps, before there are scores: the mean over layers, or all if that is unknown."""
    of_neurons = isinstance(pruner.amount, float) and pruner.amount_of == "neurons" and "experts" not in targets
    if not of_neurons:
        return dict(ffns.sizes)
    share = 1.0 - pruner.amount
    return {
        name: round_width(round(size * share), size, pruner.multiple_for(record_of_size(name, size)), pruner.min_keep)
        for name, size in ffns.sizes.items()
    }


def dtype_name(model: nn.Module) -> str:
    """Return the dtype of a model's first parameter, such as ``float32``."""
    return str(next(model.parameters()).dtype).removeprefix("torch.")


def model_source(model: nn.Module) -> str:
    """Return a model's hub name, the last part of its path (reports should name no local folders), or its class."""
    name = str(getattr(model, "name_or_path", "") or type(model).__name__)
    is_path = Path(name).exists() or Path(name).is_absolute() or name.startswith(".")
    return Path(name).name if is_path else name


def json_safe(value: Any) -> Any:
    """Convert a value, with all that it holds, for strict JSON; what JSON lacks, such as infinity, becomes a string.

    Examples
    --------
    >>> json_safe({"perplexity": float("inf"), "widths": (3, 4)})
    {'perplexity': 'inf', 'widths': [3, 4]}
    """
    if isinstance(value, dict):
        return {str(key): json_safe(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_safe(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    # Scorers and pruners of third parties may hold attributes of any type.
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)
