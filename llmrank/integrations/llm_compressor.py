"""Prune within a recipe of llm-compressor, so that the rest of the recipe quantises the smaller model.

llm-compressor is an extra (``pip install "llmrank[compressor]"``). Importing this module makes the modifier known to recipes in
YAML. Without llm-compressor the module can be imported, but no modifier can be made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from llmrank.errors import CalibrationError, OptionError
from llmrank.pipeline.defaults import DEFAULTS
from llmrank.pipeline.pruning_run import PruningRun
from llmrank.pipeline.recipe import Recipe
from llmrank.pipeline.registry import make_recipe
from llmrank.pipeline.report import Report
from llmrank.pipeline.specs import split_spec
from llmrank.pipeline.texts import CalibrationText
from llmrank.prune.masks import Masks
from llmrank.text.sequences import TokenSequences
from llmrank.text.tokenisation import sequences_of_rows

try:
    from compressed_tensors.quantization.utils import is_module_quantized
    from llmcompressor.core import active_session
    from llmcompressor.modifiers import Modifier, ModifierFactory
    from loguru import logger
except ImportError:
    ModifierFactory = None

    class Modifier:  # type: ignore[no-redef]
        """Takes the place of llm-compressor's base class of modifiers if llm-compressor is not installed."""

        def __init__(self, **_: Any) -> None:
            raise OptionError("recipes need llm-compressor; pip install 'llmrank[compressor]'")


__all__ = ["LLMRankModifier", "sequences_of_batches"]

# The inputs that a batch of text may have. Batches with other inputs, such as images, are refused.
TEXT_INPUTS = {"input_ids", "attention_mask", "labels", "loss_mask", "position_ids", "token_type_ids"}
MIXTURE = (
    "a mixture of experts cannot be pruned in a recipe, where tokens reach other experts than the router chooses; prune it with "
    "llmrank prune, and quantise the checkpoint"
)


class LLMRankModifier(Modifier):  # type: ignore[misc]
    """A modifier for recipes of llm-compressor that prunes the model in place, on the recipe's calibration data.

    It prunes when the recipe is initialised, before the modifiers that follow it look at the model. So it must come first, and
    the model must not be quantised yet. Each sample of the calibration data is one sequence. Layers that keep different numbers
    of neurons are filled up with zeros to one width, so that programs that expect equal layers load the checkpoint.

    Parameters
    ----------
    amount : float or int
        Share in [0, 1), or number, of what is removed.
    targets : str or list of str
        What is removed, as for :func:`llmrank.prune_model`: neurons, heads, or both, or blocks. It does not name modules, as the
        `targets` of other modifiers do.
    scorer, pruner, repair, pipeline : str
        Specs, as for :func:`llmrank.prune_model`.
    multiple_of : int
        The widths of the pruned layers are rounded to the nearest multiple of this number, unless the spec of the pruner has its
        own `multiple_of`. The default, 128, is the group size of the scheme W4A16, and the group size must divide the width.

    Raises
    ------
    pydantic.ValidationError
        An option is unknown or out of range; a ValueError with the message of the OptionError.
    OptionError
        llm-compressor is not installed.
    """

    # llm-compressor also writes the recipe as YAML beside the checkpoint. YAML holds no objects, so these are specs; and options
    # that are None would be left out there, so none of them is None.
    amount: float | int = 0.3
    targets: str | list[str] = "neurons"
    scorer: str = DEFAULTS["scorer"]
    pruner: str = DEFAULTS["pruner"]
    repair: str = DEFAULTS["repair"]
    pipeline: str = DEFAULTS["pipeline"]
    multiple_of: int = 128

    _masks: Masks | None = None
    _report: Report | None = None

    @property
    def masks(self) -> Masks | None:
        """Keep masks over the neurons of the dense model; None before pruning."""
        return self._masks

    @property
    def report(self) -> Report | None:
        """The protocol and the outcome; None before pruning."""
        return self._report

    def model_post_init(self, context: Any) -> None:  # noqa: ARG002 -- pydantic passes it
        """Refuse options that no pipeline takes."""
        if "experts" in self._pruning_recipe().targets:
            raise OptionError(MIXTURE)

    def on_initialize(self, state: Any, **_: Any) -> bool:
        """Prune the model of a session of llm-compressor.

        Parameters
        ----------
        state : llmcompressor.core.State

        Returns
        -------
        bool
            True.

        Raises
        ------
        OptionError
            Other modifiers of the recipe come before this one, or the model is quantised or a mixture of experts.
        LLMRankError
            Bad data, or a model that cannot be pruned; see :func:`llmrank.prune_model`. The weights are unchanged after any of
            these errors, unless it comes after the repair.
        """
        self._check_place(state)
        sequences = sequences_of_batches(state.data.calib)
        calibration = CalibrationText.of(sequences)
        pruning = PruningRun(
            state.model, None, replace(self._pruning_recipe(), calibration=calibration), undoable=False
        )
        if pruning.prepare().ffns.mixtures:
            # llm-compressor replaces the mixtures, and by default sends every token to all experts.
            raise OptionError(MIXTURE)
        pruning.run()
        self._masks, self._report = pruning.masks, pruning.report
        for note in pruning.report.notes if pruning.report is not None else ():
            logger.warning(note)
        # If a model states where it was loaded from, llm-compressor saves the config.json from there, which has the old width.
        state.model.config._name_or_path = ""
        return True

    def _pruning_recipe(self) -> Recipe:
        """Return the recipe of llmrank that the specs describe."""
        multiple = None if "multiple_of" in split_spec(self.pruner)[1] else self.multiple_of
        return make_recipe(
            self.pipeline,
            self.scorer,
            self.pruner,
            self.repair,
            amount=self.amount,
            multiple_of=multiple,
            targets=self.targets,
            form="padded",
        )

    def _check_place(self, state: Any) -> None:
        modifiers = active_session().lifecycle.recipe.modifiers
        if [k for k, modifier in enumerate(modifiers) if isinstance(modifier, LLMRankModifier)] != [0]:
            names = ", ".join(type(modifier).__name__ for modifier in modifiers)
            raise OptionError(
                f"LLMRankModifier must occur once in a recipe, as its first modifier, got {names}: other modifiers attach "
                "themselves to the modules of the model before they are pruned; reorder the recipe, and load the model again"
            )
        if any(map(is_module_quantized, state.model.modules())):
            raise OptionError(
                "the model is quantised already; prune the model first, with this modifier in front of the one that quantises"
            )


def sequences_of_batches(batches: Iterable[Mapping[str, torch.Tensor]] | None) -> TokenSequences:
    """Make token sequences from the batches of a data loader: one for each sample, padded on the right to the longest sample.

    Parameters
    ----------
    batches : iterable of mappings, or None
        Each has ``input_ids`` (batch, length), and perhaps ``attention_mask`` of that shape, 0 at padding.

    Raises
    ------
    CalibrationError
        There are no batches, their samples are shorter than 2 tokens, or they have other inputs than text.
    """
    rows: list[torch.Tensor] = []
    for batch in () if batches is None else batches:
        if "input_ids" not in batch or not batch.keys() <= TEXT_INPUTS:
            raise CalibrationError(
                f"the calibration data have the inputs {', '.join(batch)}; expected input_ids of a text, and no images or sounds"
            )
        ids = batch["input_ids"].to("cpu", torch.long)
        is_token = batch.get("attention_mask", torch.ones_like(ids)).to("cpu", torch.bool)
        rows += [row[chosen] for row, chosen in zip(ids, is_token, strict=True)]
    if max(map(len, rows), default=0) < 2:
        raise CalibrationError(
            f"pruning needs calibration data, samples of 2 tokens or more; got {len(rows)} samples, none as long; pass dataset= "
            "to oneshot"
        )
    return sequences_of_rows(rows, 0, "calibration data of llm-compressor")


if ModifierFactory is not None:
    ModifierFactory.register(LLMRankModifier.__name__, LLMRankModifier)
