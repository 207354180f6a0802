"""A ranking in a directory: all that is needed to prune a model again, by any amount, without a new calibration."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graphs import GraphError
from graphs.io.tensor_files import read_tensors, tensors_checksum, write_tensors
from llmrank.calibration.statistics import FFNStatistics
from llmrank.calibration.statistics.statistics_file import read_statistics, write_statistics
from llmrank.errors import OptionError
from llmrank.execution.json_files import read_json, write_json
from llmrank.file_contents import NUMBER, check_fields, refused_unless_sound
from llmrank.models import FFNs
from llmrank.models.digest import weights_digest
from llmrank.pipeline.closeness.loss_curves import LossCurves
from llmrank.prune.records.units import parse_targets
from llmrank.text import TokenSequences

__all__ = ["SCORES", "SETTINGS", "Ranking"]

# The names of the files in the directory.
SETTINGS, STATISTICS, TOKENS, SCORES = (
    "ranking.json",
    "statistics.safetensors",
    "tokens.safetensors",
    "scores.safetensors",
)
# The settings that every ranking has, and those that some have.
FIELDS = {
    **dict.fromkeys(("model", "weights", "pipeline", "scorer"), str),
    "layers": dict,
    "files": dict.fromkeys((STATISTICS, TOKENS, SCORES), str),
}
OPTIONAL = {"ffns": list, "collected": list, "calibration": dict, "losses": dict}
# What losses were measured with, besides the losses themselves.
OF_LOSSES = {"scorer": str, "pipeline": str, "beta": (str, *NUMBER), "targets": list, "shares": list}
ADVICE = "rank the model again"


@dataclass(frozen=True, eq=False)
class Ranking:
    """The calibration of a model, and the scores of its neurons.

    Attributes
    ----------
    statistics : tuple of FFNStatistics
        In the order of the model's FFNs.
    sequences : TokenSequences
        The sequences that the statistics were collected on.
    held_out : TokenSequences or None
        The sequences held out from a repair.
    other : TokenSequences or None
        Held-out sequences of another kind of text.
    settings : mapping
        The model, a digest of its weights (:func:`llmrank.models.digest.weights_digest`), its layers and FFNs, and
        the pipeline and the scorer that computed the scores, as values that JSON can hold; with ``--losses`` also what the model
        loses by more and more of each layer.
    scores : mapping from str to (n,) float64 tensor
        The importance of every neuron, by the name of its layer. They are for people who read the file: pruning computes them
        again from the statistics.
    """

    statistics: tuple[FFNStatistics, ...]
    sequences: TokenSequences
    held_out: TokenSequences | None
    other: TokenSequences | None
    settings: Mapping[str, Any]
    scores: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the ranking into a directory that exists.

        Raises
        ------
        OSError
            The disk is full, or the system refuses.
        """
        place = Path(directory)
        write_statistics(place / STATISTICS, self.statistics)
        tokens: dict[str, torch.Tensor] = {}
        about: dict[str, Any] = {"held_out": self.sequences.held_out}
        for prefix, each in (("", self.sequences), ("held_out_", self.held_out), ("other_", self.other)):
            if each is not None:
                tokens |= {f"{prefix}ids": each.ids, f"{prefix}mask": each.mask}
                about |= {f"{prefix}source": each.source, f"{prefix}details": dict(each.details)}
        write_tensors(place / TOKENS, {name: tensor.numpy() for name, tensor in tokens.items()}, about, "tokens")
        write_tensors(place / SCORES, {name: tensor.numpy() for name, tensor in self.scores.items()}, {}, "scores")
        # The checksums tie the files to each other: those of another ranking are not taken for these.
        files = {name: tensors_checksum(place / name) for name in (STATISTICS, TOKENS, SCORES)}
        write_json(place / SETTINGS, {**self.settings, "files": files})

    def statistics_of(self, model: nn.Module, ffns: FFNs) -> tuple[FFNStatistics, ...]:
        """Return the statistics of FFNs of a model: all that were ranked, or some.

        Raises
        ------
        OptionError
            The ranking is of another model, or of other FFNs.
        """
        ranked = self.settings["layers"]
        names = self.settings.get("ffns", [ffn.name for ffn in ffns])
        same_weights = self.settings["weights"] == weights_digest(model)
        absent = [ffn.name for ffn in ffns if ffn.name not in names]
        if same_weights and absent:
            raise OptionError(
                f"the ranking has no statistics of {absent[0]}: it ranked other targets; rank the model with the same --targets"
            )
        if not same_weights or not ffns.sizes.items() <= ranked.items() or len(names) != len(self.statistics):
            raise OptionError(
                f"the ranking is of {self.settings['model']}, and this {type(model).__name__} has other weights; give the "
                "model that was ranked, in the same dtype"
            )
        found = dict(zip(names, self.statistics, strict=True))
        if any(found[ffn.name].sizes != ffn.sizes for ffn in ffns):
            raise OptionError(f"the statistics of the ranking do not fit the layers that it names; {ADVICE}")
        return tuple(found[ffn.name] for ffn in ffns)

    def losses(self, settings: Mapping[str, Any]) -> LossCurves | None:
        """Return the losses that were measured with such settings; None if there are none."""
        kept = self.settings.get("losses")
        if kept is None or any(kept[name] != value for name, value in settings.items()):
            return None
        return LossCurves.of_dict(kept["curves"])

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Ranking:
        """Read what :meth:`save` has written.

        Raises
        ------
        OptionError
            The directory holds no ranking, or a damaged one.
        """
        place = Path(directory)
        try:
            settings = read_json(place / SETTINGS)
            with refused_unless_sound(place / SETTINGS, ADVICE):
                check_fields(settings, FIELDS, OPTIONAL)
                check_fields(settings["layers"], dict.fromkeys(settings["layers"], int))
                if not all(
                    isinstance(name, str) for name in (*settings.get("ffns", ()), *settings.get("collected", ()))
                ):
                    raise TypeError("names of FFNs or of parts of a calibration are no text")
                if "losses" in settings:
                    check_fields(settings["losses"], {**OF_LOSSES, "curves": dict})
                    parse_targets(settings["losses"]["targets"])
                    LossCurves.of_dict(settings["losses"]["curves"])
            for name, checksum in settings.pop("files").items():
                if tensors_checksum(place / name) != checksum:
                    raise GraphError(f"{name} is damaged, or that of another ranking")
            statistics = read_statistics(place / STATISTICS)
            about, tokens = read_tensors(place / TOKENS, "tokens")
            _, scores = read_tensors(place / SCORES, "scores")
        except (OSError, GraphError) as error:
            raise OptionError(
                f"{place} holds no complete ranking ({error}); expected a directory that llmrank rank has written"
            ) from error

        def sequences_of(prefix: str) -> TokenSequences:
            arrays = tokens[f"{prefix}ids"], tokens[f"{prefix}mask"]
            return TokenSequences.of_file(*arrays, about[f"{prefix}source"], about[f"{prefix}details"])

        with refused_unless_sound(place / TOKENS, ADVICE):
            check_fields(about, {"held_out": int})
            held_out, other = (sequences_of(n) if f"{n}source" in about else None for n in ("held_out_", "other_"))
            sequences = replace(sequences_of(""), held_out=about["held_out"])
            lengths = {each.ids.shape[1:] for each in (sequences, held_out, other) if each is not None}
            if not 0 <= sequences.held_out < len(sequences) or len(lengths) > 1:
                raise ValueError(
                    f"{sequences.held_out} of {len(sequences)} sequences are held out, of lengths {lengths}"
                )
            if len(tokens) != 2 * sum(each is not None for each in (sequences, held_out, other)):
                raise ValueError(f"the source of some of {', '.join(sorted(tokens))} is missing")
        with refused_unless_sound(place / SCORES, ADVICE):  # a sweep writes no scores
            if scores and {name: each.shape for name, each in scores.items()} != {
                n: (k,) for n, k in settings["layers"].items()
            }:
                raise ValueError("it has scores of other layers")
        importance = {name: torch.from_numpy(array) for name, array in scores.items()}
        return cls(statistics, sequences, held_out, other, settings, importance)
