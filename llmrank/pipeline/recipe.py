"""What is done to a model: a frozen value that all stages read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from llmrank.errors import OptionError, check_choice
from llmrank.healing import Distillation
from llmrank.models.costs import unit_name
from llmrank.pipeline.closeness.candidates import Choice
from llmrank.pipeline.texts import CalibrationText, EvaluationText, Text
from llmrank.prune import BasePruner, LocalPruner, SensitivityPruner
from llmrank.prune.records.units import Target, parse_targets
from llmrank.prune.selection import check_several, prunes_jointly
from llmrank.repair import BaseRepair, LeastSquaresRepair
from llmrank.score import AutoScorer, BaseScorer
from llmrank.score.topologies import TOPOLOGIES, Topology, check_beta
from llmrank.surgery.forms import FORMS, SMALLER, Form

__all__ = ["Recipe"]


@dataclass(frozen=True, eq=False)
class Recipe:
    """What is done to a model. How it is computed is said by :class:`llmrank.execution.Execution`.

    Its defaults are those of the commands, of :func:`llmrank.prune_model` and of the pipelines.

    Parameters
    ----------
    topology : {"isolated", "chained", "residual"}
        How the graphs of FFNs are joined, see :mod:`llmrank.pipeline.pipelines`.
    scorer : BaseScorer
        An :class:`llmrank.score.AutoScorer` is a choice, which is made by trials.
    pruner : BasePruner
    repair : BaseRepair or None
    targets : str or sequence of {"neurons", "experts", "heads", "blocks"}
        What is removed; a tuple after construction. Blocks are chosen by what the model loses without each.
    form : {"compact", "padded", "zero", "mask"}
        See :func:`llmrank.surgery.apply.apply_masks`.
    heal : Distillation or int, optional
        How the pruned model learns the predictions of the dense one, or the number of tokens that it learns from; by default it
        learns nothing.
    calibration : CalibrationText or RankedText, or a source of a text
        The text that statistics are taken on, and what a repair is fitted to.
    evaluation : EvaluationText, a source of one, or True; optional
        The text that perplexity is measured on; by default none is measured.
    beta : "measured" or float
        Of a residual topology: the share of the importance that skip edges pass on, 0..1.
    attention : bool
        Of a residual topology: whether attentions are edges too.
    structure_dict : mapping or None
        Linears whose rows are pruned instead of FFNs, as in the paper.

    Raises
    ------
    OptionError
        A field is of the wrong kind or out of range, or two do not go together.

    Examples
    --------
    >>> from llmrank.score import ActivationScorer
    >>> Recipe(scorer=ActivationScorer(), pruner=LocalPruner(0.2)).settings()["pruner"]["amount"]
    0.2
    """

    topology: Topology = "isolated"
    scorer: BaseScorer = field(default_factory=AutoScorer)
    pruner: BasePruner = field(default_factory=LocalPruner)
    repair: BaseRepair | None = field(default_factory=LeastSquaresRepair)
    targets: tuple[Target, ...] = ("neurons",)
    form: Form = "compact"
    heal: Distillation | None = None
    calibration: Text = field(default_factory=lambda: CalibrationText("auto"))
    evaluation: EvaluationText | None = None
    beta: float | Literal["measured"] = "measured"
    attention: bool = False
    structure_dict: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        self._check_components()
        texts = {"calibration": CalibrationText.of(self.calibration), "evaluation": EvaluationText.of(self.evaluation)}
        for name, value in {"targets": parse_targets(self.targets), **texts}.items():
            object.__setattr__(self, name, value)
        check_several(self.pruner, self.targets)
        if "blocks" in self.targets:
            self._set_for_blocks()
        check_choice("topology", self.topology, TOPOLOGIES)
        if self.beta != "measured":
            check_beta(self.beta)
        if self.topology != "residual" and (self.beta != "measured" or self.attention):
            raise OptionError(
                f"beta and attention are options of the residual topology, got the {self.topology} one; leave them out"
            )
        check_choice("form", self.form, FORMS)
        object.__setattr__(self, "heal", Distillation.of(self.heal))
        if self.structure_dict is not None:
            self._check_listed_linears()
        if self.calibration.ranking is not None and self.attention:
            raise OptionError(
                "a ranking holds no statistics of attentions; leave attention=true out, or calibrate on text (llmrank prune)"
            )

        if self.heal is not None and (self.calibration.ranking is not None or self.structure_dict is not None):
            raise OptionError(
                "heal needs a text and a language model that was really pruned: not a ranking, which keeps only its own text, "
                "and no structure_dict; prune without heal, and then heal the checkpoint with llmrank heal"
            )
        if self.heal is not None and self.heal.learn == "lora" and self.form == "mask":
            raise OptionError(
                "adapters of LoRA cannot be merged into weights of the form mask; prune compactly, or use learn='all'"
            )

    def _check_components(self) -> None:
        for name, base in (("scorer", BaseScorer), ("pruner", BasePruner), ("repair", BaseRepair)):
            value = getattr(self, name)
            if not isinstance(value, base) and not (name == "repair" and value is None):
                raise OptionError(
                    f"{name} must be an instance of {base.__name__}, got {value!r}; make_{name} of llmrank.pipeline.registry "
                    "makes one by its name"
                )

    def _set_for_blocks(self) -> None:
        """Let measured losses choose, because graphs of FFNs say little about whole blocks."""
        if self.form not in SMALLER or self.structure_dict is not None:
            raise OptionError("blocks are left out in the forms compact and padded; leave form and structure_dict out")
        if self.repair is not None and not self.repair.needs_dense_stream:
            raise OptionError(
                f"{type(self.repair).__name__} repairs what an FFN itself has lost, and blocks are left out whole; use least "
                "squares with target 'stream' (--repair lstsq), or no repair"
            )
        given = self.pruner
        if not isinstance(given, (LocalPruner, SensitivityPruner)):
            raise OptionError(
                f"blocks are chosen by what the model loses without each, got {type(given).__name__}; leave the pruner out"
            )
        if not isinstance(given, SensitivityPruner):
            pruner = SensitivityPruner(given.amount, protect=given.protect, amount_of=given.amount_of)
            object.__setattr__(self, "pruner", pruner)
        object.__setattr__(self, "scorer", self.candidates[0])

    def _check_listed_linears(self) -> None:
        """Refuse what needs whole FFNs."""
        if self.topology == "residual":
            raise OptionError(
                "structure_dict lists Linears, and a residual stream skips whole FFNs; leave it out, or use the chained or the "
                "isolated pipeline"
            )
        if self.repair is not None:
            raise OptionError(
                "repair needs whole FFNs, and structure_dict prunes rows of Linears; leave one of them out"
            )
        if self.is_choice:
            raise OptionError(
                "a choice of scorers tries cuts of whole FFNs, and structure_dict prunes rows of Linears; give one scorer with "
                "it, such as WeightedPageRankScorer()"
            )
        if self.pruner.needs_sensitivity:
            raise OptionError(
                f"{type(self.pruner).__name__} needs the sensitivities of whole FFNs, and structure_dict prunes rows of Linears; "
                "use LocalPruner or GlobalPruner with it"
            )
        if self.pruner.amount_of != "neurons":
            raise OptionError(
                "structure_dict zeroes rows of Linears, which makes nothing smaller: an amount of "
                f"{unit_name(self.pruner.amount_of)} means nothing there; use amount_of='neurons' with it"
            )
        if self.form in SMALLER:
            raise OptionError(
                f"form={self.form!r} is refused with structure_dict, which keeps every width; use form 'zero' or 'mask'"
            )

    @property
    def is_choice(self) -> bool:
        """Whether the scorer is chosen among candidates."""
        return isinstance(self.scorer, AutoScorer)

    @property
    def candidates(self) -> tuple[BaseScorer, ...]:
        """The scorers to choose from; the scorer alone if it is no choice."""
        return self.scorer.candidates if isinstance(self.scorer, AutoScorer) else (self.scorer,)

    def chosen_scorer(self, choice: Choice | None) -> BaseScorer:
        """Return the scorer that ranks: the one that was chosen, the first candidate if nothing was, or the only one."""
        chosen = None if choice is None else choice.chosen
        return next((each for each in self.candidates if each.label() == chosen), self.candidates[0])

    @property
    def holds_out(self) -> bool:
        """Whether the run needs held-out calibration sequences: for a repair, for a choice, or to measure losses."""
        return self.repair is not None or len(self.candidates) > 1 or bool(self.pruner.shares_measured)

    @property
    def measures_skips(self) -> bool:
        """Whether the calibration measures the share of the residual stream that skips each block."""
        return self.topology == "residual" and self.beta == "measured"

    @property
    def jointly(self) -> bool:
        """Whether the neurons of all graphs share one budget."""
        return prunes_jointly(self.structure_dict, self.topology)

    @property
    def trial_targets(self) -> tuple[Target, ...]:
        """What a trial cut removes: of neurons and experts, only neurons."""
        return tuple(t for t in self.targets if t != "experts" or "neurons" not in self.targets)

    def settings(self, scorer: BaseScorer | None = None) -> dict[str, Any]:
        """Return the settings as values for a report.

        Parameters
        ----------
        scorer : BaseScorer, optional
            The scorer that was chosen; by default that of the recipe.
        """
        scorer = scorer or self.scorer
        options = {"beta": self.beta, "attention": self.attention} if self.topology == "residual" else {}
        return {
            "pipeline": self.topology,
            **options,
            "scorer": {"name": type(scorer).__name__, **scorer.parameters()},
            "pruner": {"name": type(self.pruner).__name__, **vars(self.pruner)},
            "targets": list(self.targets),
            "form": self.form,
            "heal": None if self.heal is None else asdict(self.heal),
            "repair": {"name": type(self.repair).__name__, **self.repair.parameters()} if self.repair else None,
            "structure_dict": self.structure_dict,
        }
