"""Predictions of a dense model in a file: the likeliest tokens, and an unbiased sample of the others.

With them a pruned model can be healed without the dense model in memory, and more than once. Sums over the likeliest tokens alone
are biased: the pruned model would learn that the others never come (arXiv 2503.16870). So tokens are drawn from the rest of the
distribution, and stand for its mass.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from graphs.io.tensor_files import read_tensors, write_tensors
from llmrank.errors import OptionError
from llmrank.evaluation.logits import POSITIONS_AT_ONCE, Predictor, check_predicts, check_vocabularies
from llmrank.execution import Execution
from llmrank.file_contents import check_fields, refused_unless_sound
from llmrank.healing.teachers import BandDivergence, vocabulary_of
from llmrank.models.forward import at_least_float32, evaluation_mode
from llmrank.text import CalibrationTokens, TokenSequences

__all__ = ["Predictions", "predict_tokens"]

# How many of the likeliest tokens are kept, and how many are drawn from the others. With the token itself, that is 289 bytes a
# token.
TOP, DRAWN = 32, 22
KIND, VERSION = "predictions", 1


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions of a dense model for every token of a text; a teacher, see :class:`llmrank.healing.teachers.Teacher`.

    Attributes
    ----------
    tokens : CalibrationTokens
        The text: what to learn from, and what is held out.
    vocabulary : int
        Number of tokens that the model predicts.
    top_ids : (n, steps, TOP) int32 tensor
        The likeliest tokens for each of the predicted positions of the n sequences.
    top_log_p : (n, steps, TOP) float16 tensor
        Their log-probabilities.
    drawn_ids : (n, steps, DRAWN) int32 tensor
        Tokens that are drawn from the others, each with the probability that it has among them.
    entropy : (n, steps) float32 tensor
        The entropy of the distribution, in nats.
    notes : tuple of str
        What a user should know about the text.
    """

    tokens: CalibrationTokens
    vocabulary: int
    top_ids: torch.Tensor
    top_log_p: torch.Tensor
    drawn_ids: torch.Tensor
    entropy: torch.Tensor
    notes: tuple[str, ...] = ()

    def check(self, model: Any, tokens: CalibrationTokens) -> None:
        """See :meth:`llmrank.healing.teachers.Teacher.check`."""
        check_vocabularies(self.vocabulary, vocabulary_of(model))
        if [each and each.digest for each in tokens] != [each and each.digest for each in self.tokens]:
            raise OptionError("the predictions are those of other sequences; learn from the sequences of the file")
        is_encoder_decoder = bool(getattr(model.config, "is_encoder_decoder", False))
        if self.entropy.shape[1] != _steps(tokens.sequences.length, is_encoder_decoder):
            raise OptionError(
                f"the predictions are not for the tokens that {type(model).__name__} predicts; write them with the dense model "
                "that it was pruned from"
            )

    def identity(self) -> str:
        """See :meth:`llmrank.healing.teachers.Teacher.identity`."""
        digest = hashlib.sha256(self.entropy.numpy().tobytes())
        digest.update(self.drawn_ids.numpy().tobytes())  # which of them were drawn depends on the seed
        return digest.hexdigest()

    def divergences(
        self,
        ids: torch.Tensor,
        _mask: torch.Tensor,
        rows: torch.Tensor,
        *,
        comes_again: bool = False,  # noqa: ARG002
    ) -> Iterator[BandDivergence]:
        """See :meth:`llmrank.healing.teachers.Teacher.divergences`; of each an estimate, whose mean is the divergence.

        Log-probabilities of half precision add up to 2e-4 nats to it.
        """
        steps = self.entropy.shape[1]
        width = max(1, POSITIONS_AT_ONCE // max(1, len(ids)))
        chosen = rows.cpu()
        for start in range(0, steps, width):
            band = slice(start, min(start + width, steps))

            def divergence(logits: torch.Tensor, band: slice = band) -> torch.Tensor:
                log_q = at_least_float32(logits).log_softmax(-1)
                top_ids, top_log_p, drawn, entropy = (
                    each[chosen, band].to(logits.device)
                    for each in (self.top_ids, self.top_log_p, self.drawn_ids, self.entropy)
                )
                p = top_log_p.float().exp()
                rest = (1.0 - p.sum(-1)).clamp(min=0.0)
                # Where p is 0 the term counts as 0; log q is -Inf there if neither model predicts the token.
                of_top = -(p * log_q.gather(-1, top_ids.long())).masked_fill(p == 0.0, 0.0).sum(-1)
                of_rest = -log_q.gather(-1, drawn.long()).mean(-1)
                return of_top + rest * of_rest - entropy

            yield divergence

    def save(self, path: Path) -> None:
        """Write the predictions and their text to a file, completely or not at all."""
        learned, held_out, other = self.tokens
        parts = {"own": learned, "held_out": held_out, "other": other}
        tensors = {f"{name}.ids": part.ids.int() for name, part in parts.items() if part is not None}
        tensors |= {f"{name}.mask": part.mask for name, part in parts.items() if part is not None}
        tensors |= {name: getattr(self, name) for name in ("top_ids", "top_log_p", "drawn_ids", "entropy")}
        meta: dict[str, Any] = {"vocabulary": self.vocabulary, "notes": self.notes}
        meta |= {"sources": {name: part.source for name, part in parts.items() if part is not None}}
        write_tensors(path, {name: each.numpy() for name, each in tensors.items()}, meta, KIND, VERSION)

    @classmethod
    def read(cls, path: Path) -> Predictions:
        """Read what :meth:`save` has written.

        Raises
        ------
        graphs.GraphError
            The file is missing, damaged, or of another kind.
        OptionError
            Its tensors do not fit each other.
        """
        meta, arrays = read_tensors(path, KIND, VERSION)
        with refused_unless_sound(path, "write it again with llmrank predict"):
            return cls._of(meta, arrays)

    @classmethod
    def _of(cls, meta: dict[str, Any], arrays: dict[str, np.ndarray[Any, Any]]) -> Predictions:
        """Make predictions of the content of a file; raise an error of any type that is not an OptionError unless they fit."""
        check_fields(meta, {"vocabulary": int, "sources": dict}, {"notes": list})
        vocabulary, notes, sources = meta["vocabulary"], tuple(meta.get("notes", ())), meta["sources"]
        if not all(isinstance(note, str) for note in notes):
            raise TypeError("a note is no text")
        learned, held_out, other = (
            TokenSequences.of_file(arrays[f"{name}.ids"], arrays[f"{name}.mask"], sources[name])
            if name in sources or name == "own"
            else None
            for name in ("own", "held_out", "other")
        )
        if learned is None or learned.ids.is_floating_point():
            raise TypeError("predictions are those of token ids")
        parts = [part for part in (learned, held_out, other) if part is not None]
        arrays = {name: arrays[name] for name in ("top_ids", "top_log_p", "drawn_ids", "entropy")}
        rows, length = sum(map(len, parts)), learned.length
        steps = arrays["entropy"].shape[1]
        if any(part.length != length for part in parts) or steps not in (
            _steps(length, both) for both in (False, True)
        ):
            raise ValueError(f"there are {steps} predictions for sequences of {length} tokens")
        dtypes = {"top_ids": "int32", "top_log_p": "float16", "drawn_ids": "int32", "entropy": "float32"}
        for name, array in arrays.items():
            axes = 2 if name == "entropy" else 3
            if array.dtype != dtypes[name] or array.ndim != axes or array.shape[:2] != (rows, steps) or not array.size:
                raise ValueError(f"{name} is of {array.dtype} {array.shape}, and there are {rows} sequences")
        if arrays["top_log_p"].shape != arrays["top_ids"].shape:
            raise ValueError("there are not as many log-probabilities as likeliest tokens")
        # A model checks the tokens of the text when it reads them.
        if any(not 0 <= int(arrays[n].min()) <= int(arrays[n].max()) < vocabulary for n in ("top_ids", "drawn_ids")):
            raise ValueError(f"there are other tokens than those from 0 to {vocabulary - 1}")
        if not (arrays["top_log_p"] <= 0.0).all() or not np.isfinite(arrays["entropy"]).all():
            raise ValueError("a probability is above 1, or a number is not finite")
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        return cls(CalibrationTokens(learned, held_out, other), vocabulary, **tensors, notes=notes)


def _steps(length: int, is_encoder_decoder: bool) -> int:
    """Return how many tokens of a sequence a model predicts: all but the first, or the second half."""
    return length - (length // 2 if is_encoder_decoder else 1)


@torch.no_grad()
def predict_tokens(
    model: Any, tokens: CalibrationTokens, execution: Execution = Execution(), seed: int = 0
) -> Predictions:
    """Compute the predictions of a dense model for a text.

    Parameters
    ----------
    model : transformers causal or encoder-decoder language model
    tokens : CalibrationTokens
    execution : Execution
    seed : int
        Seed of the tokens that are drawn.

    Raises
    ------
    UnsupportedModelError
        The model predicts no next token.

    Notes
    -----
    Cost: a forward pass. Memory: at most 300 bytes a token, and the logits of two bands.
    """
    check_predicts(model, "prediction")
    predictor, found, vocabulary = Predictor(model), [], 0
    # On the CPU for every device, so that the same tokens are drawn wherever the model computes.
    generator = torch.Generator().manual_seed(seed)
    parts = [part for part in tokens if part is not None]
    with evaluation_mode(model):
        batches = [batch for part in parts for batch in part.batches(execution.batch_size)]
        for ids, mask in execution.steps(batches, "Predicting"):
            bands = []
            for logits, _, _ in predictor.bands(ids, mask):
                vocabulary = logits.shape[-1]
                bands.append(_compressed(logits, generator))
            found.append([torch.cat(part, dim=1) for part in zip(*bands, strict=True)])
    top_ids, top_log_p, drawn_ids, entropy = (torch.cat(part) for part in zip(*found, strict=True))
    return Predictions(tokens, vocabulary, top_ids, top_log_p, drawn_ids, entropy)


def _compressed(logits: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Return the likeliest tokens, their log-probabilities, tokens drawn from the others, and the entropies."""
    log_p = at_least_float32(logits).log_softmax(-1)
    p = log_p.exp()
    entropy = -torch.where(p > 0.0, p * log_p, 0.0).sum(-1)
    top_log_p, top_ids = log_p.topk(min(TOP, log_p.shape[-1] - 1))
    others = p.scatter(-1, top_ids, 0.0)
    # If nothing is left, what is drawn has no weight; log q may be -Inf for tokens that the model never predicts.
    others = others + (others.sum(-1, keepdim=True) == 0.0) * log_p.isfinite()
    # Where a sorted uniform number falls in the cumulated mass.
    mass = others.double().cumsum(-1)
    places = torch.rand(*mass.shape[:-1], DRAWN, generator=generator, dtype=torch.float64).to(mass.device)
    drawn = torch.searchsorted(mass, places * mass[..., -1:]).clamp(max=mass.shape[-1] - 1)
    return top_ids.int().cpu(), top_log_p.half().cpu(), drawn.int().cpu(), entropy.float().cpu()
