"""How a pruned model is healed: a frozen value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llmrank.errors import OptionError

__all__ = ["Distillation"]

# The learning rate of a model with REFERENCE_PARAMETERS parameters that takes STEPS steps. It falls with the square root of the
# number of parameters, and of few steps: the noise of Adam's first steps spoils a repaired model, and only more steps undo that
# (benchmarks/LOG.md).
LEARNING_RATES = {"all": 2e-4, "ffn": 2e-4, "lora": 1e-3}
REFERENCE_PARAMETERS = 135e6
# A step takes as many sequences as make about this many steps, but at least FEWEST_TOKENS.
STEPS, FEWEST_TOKENS = 250, 2048
# Settings of transformers' Trainer that a run sets itself.
OWN = {
    "output_dir",
    "learning_rate",
    "max_steps",
    "num_train_epochs",
    "seed",
    "data_seed",
    "use_cpu",
    "do_train",
    "do_eval",
}


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
        The highest one, which falls to zero along a cosine; by default 2e-4 (LoRA: 1e-3) for 135 M parameters and 250 steps, and
        less for larger models and fewer steps, with the square root of their number.
    sequences_per_step : int, optional
        By default as many as make about 250 steps, but at least 2,048 tokens.
    rank : int
        Rank of the adapters of LoRA.
    text_weight : float
        Weight of the loss of the text's own next tokens, in [0, 1); the rest is that of the divergence.
    trainer : mapping
        More arguments of :class:`transformers.TrainingArguments`, such as ``bf16``, ``gradient_checkpointing`` or ``report_to``.
    seed : int
        Seed of the order of sequences, and of LoRA.

    Raises
    ------
    OptionError
        A field is out of range.

    Examples
    --------
    >>> Distillation(65_536).steps(1024)
    32
    """

    tokens: int
    learn: str = "all"
    learning_rate: float | None = None
    sequences_per_step: int | None = None
    rank: int = 16
    text_weight: float = 0.0
    trainer: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("tokens", "rank", "sequences_per_step"):
            value = getattr(self, name)
            is_integer = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            if not is_integer and not (name == "sequences_per_step" and value is None):
                raise OptionError(f"{name} must be an integer >= 1, got {value!r}")
        if self.learn not in LEARNING_RATES:
            raise OptionError(f"learn must be one of {', '.join(LEARNING_RATES)}, got {self.learn!r}")
        rate = self.learning_rate
        if rate is not None and not (isinstance(rate, (int, float)) and 0.0 < rate < 1.0):
            raise OptionError(f"learning_rate must be a number between 0 and 1, got {rate!r}")
        if not (isinstance(self.text_weight, (int, float)) and 0.0 <= self.text_weight < 1.0):
            raise OptionError(f"text_weight must be a number in [0, 1), got {self.text_weight!r}")
        own = sorted(OWN & set(self.trainer))
        if own:
            raise OptionError(f"the run sets {', '.join(own)} of the Trainer itself; leave them out")
        if self.trainer:
            # Imported here, because this import is slow.
            from transformers import TrainingArguments

            unknown = sorted(set(self.trainer) - set(TrainingArguments.__dataclass_fields__))
            if unknown:
                raise OptionError(
                    f"{', '.join(unknown)}: expected fields of Distillation or arguments of transformers' TrainingArguments"
                )

    @classmethod
    def of_options(cls, tokens: int, options: Mapping[str, Any], seed: int = 0) -> Distillation:
        """Make settings of a flat mapping: what is no field of them is an argument of the Trainer."""
        own = {name: value for name, value in options.items() if name in cls.__dataclass_fields__}
        return cls(tokens, **own, trainer={name: options[name] for name in options.keys() - own.keys()}, seed=seed)

    @classmethod
    def of(cls, value: Any) -> Distillation | None:
        """Return a Distillation or None as it is, and make one of a number of tokens."""
        if value is None or isinstance(value, Distillation):
            return value
        if isinstance(value, int):
            return cls(value)
        raise OptionError(f"heal must be a Distillation, a number of tokens to learn from, or None, got {value!r}")

    def n_sequences(self, length: int) -> int:
        """Return the number of sequences of a length that hold the tokens."""
        return -(-self.tokens // length)

    def per_step(self, length: int) -> int:
        """Return the number of sequences of one step."""
        n = self.n_sequences(length)
        return self.sequences_per_step or min(n, max(-(-FEWEST_TOKENS // length), round(n / STEPS)))

    def steps(self, length: int) -> int:
        """Return the number of steps, for sequences of a length."""
        return -(-self.n_sequences(length) // self.per_step(length))

    def rate(self, parameters: int, length: int) -> float:
        """Return the highest learning rate for a model with a number of parameters, and for sequences of a length."""
        of_size = min(1.0, math.sqrt(REFERENCE_PARAMETERS / max(parameters, 1)))
        of_steps = min(1.0, math.sqrt(self.steps(length) / STEPS))
        return self.learning_rate or LEARNING_RATES[self.learn] * of_size * of_steps
