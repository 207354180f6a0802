"""Heal a pruned model: it learns the predictions of the dense model, and stays as it was where that gains nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from llmrank.errors import CalibrationError
from llmrank.evaluation.logits import check_predicts
from llmrank.execution import Execution
from llmrank.healing.distillation import Distillation
from llmrank.healing.ledger import Healing, best_row
from llmrank.healing.student import Student, learning
from llmrank.healing.teachers import Teacher
from llmrank.models.forward import evaluation_mode
from llmrank.text import CalibrationTokens

__all__ = ["heal_model"]

# Largest number of held-out sequences of each kind of text.
MOST_HELD_OUT = 8


def heal_model(
    model: Any,
    teacher: Teacher,
    tokens: CalibrationTokens,
    settings: Distillation,
    execution: Execution = Execution(),
    directory: Path | None = None,
) -> Healing:
    """Let a pruned model learn the predictions of the dense model on a text.

    The model is measured on held-out sequences at the start, four times on the way and at the end, and its weights are in the
    end those of the best measurement. Measurements that are worse than the start on one kind of text do not count.

    Parameters
    ----------
    model : transformers causal or encoder-decoder language model
        Changed in place.
    teacher : Teacher
    tokens : CalibrationTokens
        The sequences to learn from, and held-out ones of the same kind and of another kind of text.
    settings : Distillation
    execution : Execution
    directory : Path, optional
        Keeps the state of the training; if it holds a state already, the training goes on from there.

    Raises
    ------
    CalibrationError
        No sequence is held out, or the divergence is not finite. After this and after an interrupt, the weights are those of the
        best measurement so far.
    OptionError
        Nothing can learn, or the directory keeps another training.

    Notes
    -----
    Cost: for every token to learn from a forward pass of both models and a backward pass, about four forward passes in all.
    Memory: both models, the gradients and twice the size of what learns for the optimiser, activations of one batch, and the
    logits of two bands. A model in half precision learns in float32, so it takes twice its memory.
    """
    check_predicts(model, "divergence")
    text, held_out = tokens.sequences.parts if tokens.held_out is None else tokens[:2]
    if held_out is None:
        raise CalibrationError(
            "the text has only one sequence, and healing needs one more to be measured on; give more text"
        )
    kinds = {"own": held_out.spread(MOST_HELD_OUT)}
    if tokens.other is not None:
        kinds["other"] = tokens.other.spread(len(kinds["own"]))
    # Imported here, because importing the Trainer is slow.
    from llmrank.healing.training import train

    parameters = sum(each.numel() for each in model.parameters())
    rate = settings.rate(parameters, text.length)
    student = Student(model, teacher, settings.text_weight)
    with learning(model, settings):
        ids, mask = text.ids[:1], text.mask[:1]
        with torch.no_grad(), evaluation_mode(model):  # tries on which part of the model the head can run alone
            next(student.predictor.bands(ids, mask))
        learned = sum(each.numel() for each in student.learned().values())
        rows = train(student, text, kinds, settings, rate, execution, directory)
    said = {
        "learn": settings.learn,
        "parameters_that_learn": learned,
        "learning_rate": rate,
        "sequences_per_step": settings.per_step(text.length),
        "text_weight": settings.text_weight,
        "seed": settings.seed,
    }
    return Healing(rows, best_row(rows), said, text.provenance())
