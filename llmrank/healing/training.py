"""Let a student learn: transformers' Trainer takes the steps, and this module gives it the data, the measurements and the stop.

It is imported when it is needed, because importing the Trainer is slow.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, sleep
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from graphs.io.replacement import replace_file
from llmrank.errors import CalibrationError, OptionError, ProcessError
from llmrank.execution import Execution, launched_processes
from llmrank.execution.json_files import json_safe
from llmrank.execution.work_directory import ADVICE, PROGRESS_FILE, WorkDirectory, holds_run, read_progress
from llmrank.file_contents import check_fields, refused_unless_sound
from llmrank.healing.distillation import Distillation, Schedule
from llmrank.healing.ledger import Closeness, LedgerRow, best_row, rows_of
from llmrank.healing.student import Student
from llmrank.models.compat import use_one_gpu
from llmrank.models.digest import weights_digest
from llmrank.models.forward import input_device
from llmrank.surgery.atomic import check_encoding
from llmrank.text import TokenSequences

__all__ = ["train"]

# The model is measured at the start and this many times more.
MEASUREMENTS = 4
# What is noted in the directory of a training: the rows so far, and the step of the last state that the Trainer has saved.
LEDGER, STATE = "ledger", "state"
# Seconds before the connection between processes is closed. Closing waits, with Python's lock, for the thread of gloo; if that
# thread then drops the tensors of the last operation, which takes the same lock, neither ever ends (seen with torch 2.13).
FAREWELL = 0.2


def train(
    student: Student,
    text: TokenSequences,
    held_out: dict[str, TokenSequences],
    settings: Distillation,
    schedule: Schedule,
    rate: float,
    execution: Execution,
    directory: Path | None,
) -> tuple[LedgerRow, ...]:
    """Let the student learn, and leave it as it was at its best measurement, also if the training is interrupted.

    Parameters
    ----------
    student : Student
    text : TokenSequences
        What it learns from. The teacher knows its sequences by their numbers, and after them the held-out ones.
    held_out : dict from str to TokenSequences
        What it is measured on, by kind of text.
    settings : Distillation
    schedule : Schedule
    rate : float
        The highest learning rate.
    execution : Execution
    directory : Path or None
        Keeps the state of the training; if it holds a state already, the training goes on from there.

    Returns
    -------
    tuple of LedgerRow

    Raises
    ------
    OptionError
        The directory keeps another training, or a damaged state, or another training is at work in it; or the Trainer refuses
        its arguments.
    CheckpointError
        The path of the directory is not UTF-8.
    ProcessError
        Another of the processes that share the training has failed.
    OSError
        The state of the training cannot be written; the disk is full, say.
    """
    if directory is not None:
        check_encoding(directory)
    with ExitStack() as stack:
        work = directory or Path(stack.enter_context(TemporaryDirectory(prefix="llmrank-heal-")))
        connected = dist.is_available() and dist.is_initialized()
        dataset, optimizer = _dataset(student, text, schedule), _optimizer(student, settings, rate)
        try:
            arguments = _arguments(settings, student, schedule, rate, work, keeps=directory is not None)
            use_one_gpu(arguments)  # the teacher is not spread either
            trainer = _Trainer(
                text,
                held_out,
                schedule,
                execution,
                work,
                model=student,
                args=arguments,
                train_dataset=dataset,
                eval_dataset=[],  # the held-out text is read by evaluate
                compute_loss_func=_mean_loss,
                optimizers=(optimizer, None),
                callbacks=[_Shown(execution, schedule.steps)] if execution.progress else None,
            )
        except (ImportError, KeyError, TypeError, ValueError) as error:
            if not settings.trainer:
                raise
            raise OptionError(f"the Trainer refuses its arguments {dict(settings.trainer)}: {error}") from error
        trainer.remove_callback(PrinterCallback)
        try:
            with _explained(work):
                if directory is None or not launched_processes()[0]:  # process 0 writes for all that share a directory
                    run = {} if directory is None else _run(student, text, held_out, settings, schedule, rate)
                    trainer.files = WorkDirectory(work, run, resume=holds_run(work))
                    stack.callback(trainer.files.close)
                trainer.add_callback(_Saved(trainer.files))
                # The others wait here until process 0 has checked the directory.
                if len(set(gather_object([text.digest]))) > 1:
                    raise OptionError(
                        "the processes have made different texts; write the text to a file once, and give that file to all of "
                        "them"
                    )
                trainer.train(resume_from_checkpoint=trainer.last_state())
                trainer.accelerator.wait_for_everyone()
        finally:
            if not connected:
                if launched_processes()[1] > 1:
                    sleep(FAREWELL)
                trainer.accelerator.end_training()  # closes the connection to other processes, if the Trainer has opened one
            student.keep_activations()
            if trainer.rows and trainer.best_weights.is_file():
                student.read(partial(_tensor_of, trainer.best_weights))
        return tuple(trainer.rows)


def _run(
    student: Student,
    text: TokenSequences,
    held_out: dict[str, TokenSequences],
    settings: Distillation,
    schedule: Schedule,
    rate: float,
) -> dict[str, Any]:
    """Return what decides the result of a training."""
    return {
        **json_safe(settings),
        "learning_rate": rate,
        "steps": schedule.steps,
        "batch size": schedule.at_once,
        "processes": launched_processes()[1],
        "text": [text.digest, *(each.digest for each in held_out.values())],
        "pruned model": weights_digest(student.model),
        "dense model": student.teacher.identity(),
    }


@contextmanager
def _explained(work: Path) -> Iterator[None]:
    """Inside, an error of the connection between processes is a ProcessError, and one of the disk an OSError."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        reason, (rank, count) = str(error).partition("\n")[0], launched_processes()
        # The operations of gloo, and torch.save, raise plain RuntimeErrors that name them or their stream.
        if isinstance(error, SafetensorError) or any(each in reason for each in ("inline_container", "iostream error")):
            raise OSError(
                f"cannot write the state of the training to {work}: {reason}; free some space, or keep it elsewhere "
                "(--checkpoints DIR; in Python: directory)"
            ) from error
        if count > 1 and (isinstance(error, getattr(dist, "DistError", ())) or "gloo" in reason):
            raise ProcessError(
                f"another of the {count} processes has failed, so process {rank} ended too, and no checkpoint was written; find "
                "out why it failed, and run again (with --checkpoints DIR the training goes on from its last measurement): "
                f"{reason}",
                1 - rank if count == 2 else None,
            ) from error
        raise


def _tensor_of(path: Path, name: str) -> torch.Tensor:
    """Read one tensor of a file. The file is opened for each, because what was read of it stays in memory until it is closed."""
    with safe_open(path, "pt") as file:
        found: torch.Tensor = file.get_tensor(name)
        return found


class _Trainer(Trainer):
    """A Trainer whose evaluation adds a row to the ledger, and keeps the weights of the best row in a file."""

    # The files of the training, in a process that writes them.
    files: WorkDirectory | None = None

    def __init__(
        self,
        text: TokenSequences,
        held_out: dict[str, TokenSequences],
        schedule: Schedule,
        execution: Execution,
        directory: Path,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.rows: list[LedgerRow] = []
        self._text, self._held_out, self._execution, self._directory = text, held_out, execution, directory
        self._tokens_per_step = schedule.per_step * text.n_tokens / len(text)
        self._since = perf_counter()

    @property
    def best_weights(self) -> Path:
        """The file of the weights of the best row."""
        return self._directory / f"best-{self.rows[best_row(self.rows)].step}.safetensors"

    def last_state(self) -> str | None:
        """Read the rows that were measured before an interrupt, and return the folder of the Trainer's last state, if any."""
        noted = read_progress(self._directory)
        with refused_unless_sound(self._directory / PROGRESS_FILE, ADVICE.format(self._directory)):
            check_fields(noted, {}, {LEDGER: list, STATE: int})
            self.rows = rows_of(noted.get(LEDGER, []), [*self._held_out])
            if STATE not in noted:
                return None
            state = self._directory / f"checkpoint-{noted[STATE]}"
            if not (state / TRAINER_STATE_NAME).is_file():
                raise ValueError(f"{state.name} is missing")
        return str(state)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Measure the student, unless that was done before an interrupt; log the row, and tell the callbacks."""
        row = next((row for row in self.rows if row.step == self.state.global_step), None) or self._measured()
        self._since = perf_counter()
        metrics = {"eval_loss": row.divergence}
        for kind, close in row.closeness.items():
            metrics |= {f"eval_{kind}_divergence": close.divergence.value, f"eval_{kind}_perplexity": close.perplexity}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _measured(self) -> LedgerRow:
        """Measure the student, and write the row and, if it is the best so far, the weights."""
        seconds = perf_counter() - self._since + (self.rows[-1].seconds if self.rows else 0.0)
        assert self.optimizer is not None
        highest = self.optimizer.param_groups[0]["initial_lr"]  # the Trainer reads the rate of the first group
        relative = float(self._get_learning_rate()) / highest if highest else 0.0
        student: Any = self.model
        closeness, first = {}, len(self._text)
        for kind, sequences in self._held_out.items():
            batches = list(self._execution.steps(list(sequences.batches(self._execution.batch_size)), "Measuring"))
            found = student.measure(batches, first)
            closeness[kind] = Closeness(*map(tuple, zip(*found, strict=True)))
            first += len(sequences)
        step, tokens = self.state.global_step, round(self.state.global_step * self._tokens_per_step)
        row = LedgerRow(step, tokens, seconds, relative * self.args.learning_rate, closeness)
        if not math.isfinite(row.divergence):
            raise CalibrationError(
                f"after {step} steps the divergence from the dense model is not finite; "
                + ("the pruned model was broken before" if step == 0 else "give a smaller learning rate")
            )
        self.rows.append(row)
        if self.files is not None:
            best = self.best_weights
            old = {*self._directory.glob("best-*")} - {best}
            if row is self.rows[best_row(self.rows)]:
                with replace_file(best) as written:
                    save_file({name: value.contiguous() for name, value in student.state_dict().items()}, written)
                self.files.keep(best)
            self.files.note(LEDGER, [asdict(each) for each in self.rows], unneeded=old)
            for file in old:
                file.unlink()
        return row


class _Saved(TrainerCallback):
    """Notes each state that the Trainer has saved, so that a training can go on from there, and removes the earlier ones."""

    def __init__(self, files: WorkDirectory | None) -> None:
        self._files = files

    def on_save(self, *values: Any, **_: Any) -> None:
        PartialState().wait_for_everyone()  # each process writes a file of the state
        if self._files is None:
            return
        _, state, _ = values
        new = self._files.file(f"checkpoint-{state.global_step}")
        old = {*self._files.path.glob("checkpoint-*")} - {new}
        unneeded = [file for folder in old for file in folder.iterdir()]
        self._files.note(STATE, state.global_step, new.iterdir(), unneeded)
        for folder in old:
            shutil.rmtree(folder)


class _Shown(TrainerCallback):
    """Shows the steps by the progress of the execution."""

    def __init__(self, execution: Execution, steps: int) -> None:
        self._steps = execution.steps(range(steps), "Healing")

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        next(self._steps, None)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        next(self._steps, None)


def _mean_loss(outputs: Any, _labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
    """Divide the loss by the number of tokens of the step, over all processes; the Trainer calls this."""
    loss: torch.Tensor = outputs["loss"] / num_items_in_batch
    return loss


def _optimizer(student: Student, settings: Distillation, rate: float) -> torch.optim.Optimizer:
    """Return Adam with a rate for each tensor, in proportion to its root mean square; a tensor of zeros has the median."""
    learned = student.learned()
    sizes = {name: float(value.detach().float().square().mean().sqrt()) for name, value in learned.items()}
    if settings.learn == "lora":  # adapters begin with zeros
        matrices = [value for value in student.model.parameters() if value.ndim == 2 and not value.requires_grad]
        sizes = dict.fromkeys(sizes, median(float(value.float().square().mean().sqrt()) for value in matrices))
    typical = median(sizes.values())
    groups = [{"params": [value], "lr": rate * (sizes[name] or typical)} for name, value in learned.items()]
    return torch.optim.AdamW(groups, lr=rate, weight_decay=0.0)


def _dataset(student: Student, text: TokenSequences, schedule: Schedule) -> list[dict[str, torch.Tensor]]:
    """Return the sequences of all steps as the Trainer reads them: one epoch, so that no step ends early.

    It counts the tokens of a step by the labels that are not -100.
    """
    # An encoder-decoder predicts the second half.
    first = text.length // 2 if student.model.config.is_encoder_decoder else 1
    rows = [
        {
            "input_ids": ids,
            "attention_mask": mask,
            "rows": torch.tensor(row),
            "labels": ids[first:].where(mask[first:], -100),
        }
        for row, (ids, mask) in enumerate(zip(text.ids, text.mask, strict=True))
    ]
    return list(islice(cycle(rows), schedule.steps * schedule.per_step))


def _arguments(
    settings: Distillation, student: Student, schedule: Schedule, rate: float, work: Path, *, keeps: bool
) -> TrainingArguments:
    """Return the arguments of the Trainer: those of the run, of the settings, and defaults."""
    device, every = input_device(student.model), -(-schedule.steps // MEASUREMENTS)
    own = {
        "output_dir": str(work),
        "learning_rate": rate,
        "weight_decay": 0.0,
        "max_steps": schedule.steps,
        "per_device_train_batch_size": schedule.at_once,
        "gradient_accumulation_steps": schedule.passes,
        "seed": settings.seed,
        "use_cpu": device.type == "cpu",
        "eval_strategy": "steps",
        "eval_steps": every,
        "eval_on_start": True,
        "save_strategy": "steps" if keeps else "no",
        "save_steps": every,
        "remove_unused_columns": False,
        "disable_tqdm": True,
    }
    defaults = {
        "lr_scheduler_type": "cosine",
        "warmup_steps": schedule.steps // 5,
        "bf16": not settings.trainer.get("fp16") and _multiplies_bfloat16(device),
        "report_to": "none",
        "logging_steps": max(1, schedule.steps // 20),
    }
    return TrainingArguments(**{**defaults, **settings.trainer, **own})


def _multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies matrices of bfloat16 in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Older versions of torch do not say what a CPU can do.
    able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    return any(able.get(name) for name in ("avx512_bf16", "amx_bf16"))
