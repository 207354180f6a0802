"""What a pruned model learns from: the predictions of the dense model, computed when they are needed, or read from a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol, TypeAlias

import torch

from llmrank.evaluation.fidelity import rows_at_once
from llmrank.evaluation.logits import Prediction, Predictor, check_predicts, check_vocabularies
from llmrank.models.digest import weights_digest
from llmrank.models.forward import at_least_float32, evaluation_mode
from llmrank.text import CalibrationTokens

__all__ = ["BandDivergence", "DenseModel", "Teacher", "vocabulary_of"]

# From logits (batch, steps, vocabulary) to divergences (batch, steps) from the teacher, in nats.
BandDivergence: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


class Teacher(Protocol):
    """Predictions to learn from."""

    def check(self, model: Any, tokens: CalibrationTokens) -> None:
        """Raise an OptionError unless a model with this vocabulary can learn from the teacher on these sequences."""

    def identity(self) -> str:
        """Return a digest by which the teacher is known again."""

    def divergences(
        self, ids: torch.Tensor, mask: torch.Tensor, rows: torch.Tensor, *, comes_again: bool = False
    ) -> Iterator[BandDivergence]:
        """Yield for every band of :meth:`llmrank.evaluation.logits.Predictor.bands` the divergence KL(teacher || logits).

        Parameters
        ----------
        ids, mask : (batch, length) tensors
        rows : (batch,) int64 tensor
            Which sequences of the text these are.
        comes_again : bool
            Whether the teacher will be asked for this batch again.
        """


class DenseModel:
    """The dense model as a teacher: it runs on every batch.

    Parameters
    ----------
    model : transformers causal or encoder-decoder language model
        It is not changed.

    Raises
    ------
    UnsupportedModelError
        It predicts no next token.
    """

    def __init__(self, model: Any) -> None:
        check_predicts(model, "divergence")
        self.model = model
        self._predictor = Predictor(model)
        # By the tokens and mask of a batch that comes again: its predictions, of which the hidden states are kept.
        self._held: dict[bytes, Callable[[], Iterator[Prediction]]] = {}

    def check(self, model: Any, _tokens: CalibrationTokens) -> None:
        """See :meth:`Teacher.check`."""
        check_vocabularies(vocabulary_of(self.model), vocabulary_of(model))

    def identity(self) -> str:
        """See :meth:`Teacher.identity`; an offloaded model is known by its configuration, because reading its weights is slow."""
        if any(parameter.is_meta for parameter in self.model.parameters()):
            return str(self.model.config.to_json_string())
        return weights_digest(self.model)

    @torch.no_grad()
    def divergences(
        self, ids: torch.Tensor, mask: torch.Tensor, _rows: torch.Tensor, *, comes_again: bool = False
    ) -> Iterator[BandDivergence]:
        """See :meth:`Teacher.divergences`. Cost: a forward pass; of a batch that came again only one of the head."""
        with evaluation_mode(self.model):
            if comes_again:
                batch = torch.stack([ids, mask]).cpu().numpy().tobytes()
                bands = self._held.get(batch) or self._predictor.hold(ids, mask)
                if self._predictor.is_banded:  # otherwise all logits would stay in memory
                    self._held[batch] = bands
            else:  # not held, even if it were there: steps may be rounded otherwise than measurements
                bands = self._predictor.hold(ids, mask)
            for logits, *_ in bands():
                yield partial(divergence, logits)


def vocabulary_of(model: Any) -> int | None:
    """Return the number of tokens that a model predicts; None if its head does not say it."""
    weight = getattr(model.get_output_embeddings(), "weight", None)
    return None if weight is None else len(weight)


class _Divergence(torch.autograd.Function):
    """KL(softmax(teacher) || softmax(logits)), whose gradient is the difference of the two distributions.

    A few positions at a time, so that what lies between logits and divergence stays in the cache of a CPU. Autograd would keep
    all of it, and pass over the vocabulary more often.
    """

    @staticmethod
    def forward(ctx: Any, teacher_logits: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[1] else None
        found = []
        at_once = max(1, rows_at_once(logits) // len(logits))
        for position in range(0, logits.shape[-2], at_once):
            part = (..., slice(position, position + at_once), slice(None))
            log_p, log_q = (at_least_float32(each[part]).log_softmax(-1) for each in (teacher_logits, logits))
            p = log_p.exp()
            if gradient is not None:
                gradient[part] = log_q.exp().sub_(p)
            # Where p is 0 the term counts as 0; log p is -Inf there, and log q too if neither model predicts the token.
            found.append(log_p.sub_(log_q).mul_(p).masked_fill_(p == 0.0, 0.0).sum(-1))
        ctx.save_for_backward(gradient)
        return torch.cat(found, dim=-1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, torch.Tensor]:
        (difference,) = ctx.saved_tensors
        return None, difference * gradient.unsqueeze(-1).to(difference.dtype)


def divergence(teacher_logits: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Return KL(teacher || logits) at every position, in nats; only the logits have a gradient."""
    check_vocabularies(teacher_logits.shape[-1], logits.shape[-1])
    apply: Callable[..., torch.Tensor] = _Divergence.apply  # some versions of torch give it no types
    return apply(teacher_logits.to(logits.device), logits)
