"""Heal a pruned model: it learns the predictions of the dense model, and stays as it was where that gains nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from llmrank.errors import CalibrationError, OptionError
from llmrank.evaluation.logits import check_predicts
from llmrank.execution import Execution, launched_processes
from llmrank.execution.random_state import restored_random_state
from llmrank.healing.distillation import Distillation
from llmrank.healing.ledger import Healing, best_row
from llmrank.healing.student import Student, learning
from llmrank.healing.teachers import Teacher
from llmrank.models.forward import input_device
from llmrank.text import CalibrationTokens

__all__ = ["heal_model"]


def heal_model(
    model: Any,
    teacher: Teacher,
    tokens: CalibrationTokens,
    settings: Distillation,
    execution: Execution = Execution(),
    directory: Path | None = None,
    notes: Sequence[str] = (),
) -> Healing:
    """Let a pruned model learn the predictions of the dense model on a text.

    The model is measured on held-out sequences at the start, up to three times on the way and at the end. Its weights are
    then those of the best measurement; only measurements that are clearly better than the start count
    (:func:`llmrank.healing.ledger.best_row`).

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
    notes : sequence of str
        What a user should know about the text.

    Raises
    ------
    CalibrationError
        No sequence is held out, or the divergence is not finite. After this and after an interrupt, the weights are those of the
        best measurement so far.
    OptionError
        The model cannot learn, not from this teacher, or not in this way; or the directory keeps another training.

    Notes
    -----
    Cost: for every token to learn from a forward pass of both models and a backward pass, about four forward passes in all.
    Memory: both models, the gradients and twice the size of what learns for the optimiser, activations of one batch, the dense
    model's last hidden states of the held-out sequences, and the logits of two bands (all logits of a batch if the head cannot
    run on a band alone). A model in half precision learns in float32 beside its own weights, so it takes three times its memory.
    """
    check_predicts(model, "divergence")
    teacher.check(model, tokens)
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) > 1 or torch.device("meta") in devices:
        raise OptionError(
            "the pruned model is spread over several devices, or a part of it is offloaded, and so it cannot learn; load it "
            "without --device-map"
        )
    text, held_out = tokens.sequences.parts if tokens.held_out is None else tokens[:2]
    if held_out is None:
        raise CalibrationError(
            "the text has only one sequence, and healing needs one more to be measured on; give more text"
        )
    kinds = {"own": held_out} | ({} if tokens.other is None else {"other": tokens.other})
    schedule = settings.schedule(text, execution.batch_size, launched_processes()[1])
    rate = settings.rate(schedule.steps)
    # Imported here, because importing the Trainer is slow.
    from llmrank.healing.training import train

    with restored_random_state(input_device(model)), learning(model, settings) as stored:
        student = Student(model, teacher, stored)
        with (
            torch.no_grad()
        ):  # tries on which part of the models the head can run alone; inside of a step this would be rounded
            next(student.predictor.bands(text.ids[:1], text.mask[:1]))
            next(teacher.divergences(text.ids[:1], text.mask[:1], torch.zeros(1, dtype=torch.long)))
        learned = sum(each.numel() for each in student.learned().values())
        rows = train(student, text, kinds, settings, schedule, rate, execution, directory)
    said = {
        "learn": settings.learn,
        "parameters_that_learn": learned,
        "learning_rate": rate,
        "sequences_per_step": schedule.per_step,
        "seed": settings.seed,
    }
    return Healing(rows, best_row(rows), said, text.provenance(), tuple(notes))
