"""How a pruned model is healed: a frozen value, and the steps that follow from it."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from llmrank.errors import OptionError, check_choice, check_count, check_type
from llmrank.text import TokenSequences

__all__ = ["Distillation", "Schedule"]

# The highest learning rate of a model that takes FEW_STEPS steps or more, relative to the root mean square of each tensor: models
# differ in the size of their weights by more than ten times, and Adam's steps do not. It falls with the square root of fewer
# steps: the noise of the first steps spoils a repaired model, and only more steps undo that (benchmarks/LOG.md).
LEARNING_RATES = {"all": 1e-3, "ffn": 1e-3, "lora": 5e-3}
FEW_STEPS = 64
# A step takes as many sequences as make about STEPS steps, but at least FEWEST_TOKENS.
STEPS, FEWEST_TOKENS = 250, 2048
# Arguments of transformers' Trainer that a user may set. The run sets the others, or they do not fit a model whose forward pass
# returns the loss.
FLAGS = {"bf16", "fp16", "gradient_checkpointing", "activation_checkpointing"}  # newer Trainers have the last name
TRAINER_ARGUMENTS = FLAGS | {"report_to", "run_name", "project", "logging_steps", "ddp_backend", "ddp_timeout"}
# The fields of a Distillation that a flat mapping of options may name.
FIELDS = ("learn", "learning_rate", "sequences_per_step", "rank")


class Schedule(NamedTuple):
    """The steps of a training.

    Attributes
    ----------
    steps : int
    at_once : int
        Number of sequences in a forward pass of each process.
    passes : int
        Number of forward passes of each process in a step.
    per_step : int
        Number of sequences in a step, over all processes.
    """

    steps: int
    at_once: int
    passes: int
    per_step: int


@dataclass(frozen=True)
class Distillation:
    """How a pruned model learns the predictions of its dense model.

    Parameters
    ----------
    tokens : int
        Number of tokens to learn from. If the text has fewer, it is read again.
    learn : {"all", "ffn", "lora"}
        What learns: all weights but embeddings and the head, those of the FFNs, or LoRA adapters of all linear maps, which are
        merged into the weights at the end.
    learning_rate : float, optional
        The highest one, relative to the root mean square of the values of each tensor (LoRA: to the median of the model's
        matrices). It is reached after a fifth of the steps, and falls to zero along a cosine. By default 0.001 (LoRA: 0.005) for
        64 steps or more, and less for fewer, with the square root of their number.
    sequences_per_step : int, optional
        By default as many as make about 250 steps, but at least 2,048 tokens. It is rounded up to what all processes compute.
    rank : int
        Rank of the adapters of LoRA.
    trainer : mapping
        Arguments of :class:`transformers.TrainingArguments`, such as ``bf16``, ``gradient_checkpointing`` or ``report_to``; not
        those that the run sets itself.
    seed : int
        Seed of the order of sequences, and of LoRA.

    Raises
    ------
    OptionError
        A field is out of range, or LoRA is asked for and peft is not installed.

    Examples
    --------
    >>> from llmrank.text.sources import tokenise
    >>> import torch
    >>> Distillation(65_536).schedule(tokenise(torch.zeros(64, 1024, dtype=torch.int64), None, 64, 1024)).steps
    32
    """

    tokens: int
    learn: str = "all"
    learning_rate: float | None = None
    sequences_per_step: int | None = None
    rank: int = 16
    trainer: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        for name, lowest in {"tokens": 1, "rank": 1, "sequences_per_step": 1, "seed": 0}.items():
            if name != "sequences_per_step" or self.sequences_per_step is not None:
                check_count(name, getattr(self, name), lowest)
        check_choice("learn", self.learn, LEARNING_RATES)
        if self.learn == "lora" and importlib.util.find_spec("peft") is None:
            raise OptionError("learn='lora' needs peft; install it with pip install 'llmrank[lora]'")
        rate = self.learning_rate
        if rate is not None and not (isinstance(rate, (int, float)) and 0.0 < rate < 1.0):
            raise OptionError(f"learning_rate must be a number between 0 and 1, got {rate!r}")
        check_type("trainer", self.trainer, Mapping, "a mapping of arguments of transformers' Trainer")
        for name in sorted(FLAGS & self.trainer.keys()):
            if not isinstance(self.trainer[name], bool):
                raise OptionError(f"{name} must be true or false, got {self.trainer[name]!r}")
        unknown = sorted(map(str, self.trainer.keys() - TRAINER_ARGUMENTS))
        if unknown:
            raise OptionError(
                f"{', '.join(unknown)}: expected {', '.join(FIELDS)}, or of transformers' TrainingArguments one of "
                f"{', '.join(sorted(TRAINER_ARGUMENTS))}"
            )

    @classmethod
    def of_options(cls, tokens: int, options: Mapping[str, Any], seed: int = 0) -> Distillation:
        """Make settings of a flat mapping: what is no field of them is an argument of the Trainer."""
        own = {name: value for name, value in options.items() if name in FIELDS}
        return cls(tokens, **own, trainer={name: options[name] for name in options.keys() - own.keys()}, seed=seed)

    @classmethod
    def of(cls, value: Any) -> Distillation | None:
        """Return a Distillation or None as it is, and make one of a number of tokens."""
        if value is None or isinstance(value, Distillation):
            return value
        if isinstance(value, int):
            return cls(value)
        raise OptionError(f"heal must be a Distillation, a number of tokens to learn from, or None, got {value!r}")

    def schedule(self, text: TokenSequences, batch_size: int = 1, processes: int = 1) -> Schedule:
        """Return the steps for a text, `batch_size` sequences in a forward pass, and a number of processes."""
        length = text.n_tokens / len(text)  # without padding
        n = math.ceil(self.tokens / length)
        wanted = self.sequences_per_step or min(n, max(math.ceil(FEWEST_TOKENS / length), round(n / STEPS)))
        at_once = min(batch_size, math.ceil(wanted / processes))
        passes = math.ceil(wanted / (at_once * processes))
        per_step = at_once * passes * processes
        return Schedule(math.ceil(n / per_step), at_once, passes, per_step)

    def rate(self, steps: int) -> float:
        """Return the highest learning rate for a number of steps."""
        return self.learning_rate or LEARNING_RATES[self.learn] * min(1.0, math.sqrt(steps / FEW_STEPS))
