"""The pruned model as it learns: which of its weights learn, and the loss of a batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from llmrank.errors import OptionError
from llmrank.evaluation.logits import Predictor
from llmrank.healing.distillation import Distillation
from llmrank.healing.teachers import Teacher
from llmrank.models import find_ffns
from llmrank.models.forward import at_least_float32, evaluation_mode

__all__ = ["Student", "learning"]

HALF = (torch.float16, torch.bfloat16)


class Student(nn.Module):
    """A pruned model whose forward pass is its loss, so that wrappers such as DistributedDataParallel see all of it.

    Parameters
    ----------
    model : transformers causal or encoder-decoder language model
        The parameters that require gradients learn.
    teacher : Teacher
    stored : mapping from parameter to torch.dtype
        The dtypes in which parameters will be stored, where they learn in another one.
    """

    def __init__(self, model: Any, teacher: Teacher, stored: Mapping[nn.Parameter, torch.dtype]) -> None:
        super().__init__()
        self.model = model
        self.predictor = Predictor(model)
        self.teacher = teacher
        self._stored = stored
        # A function that undoes that activations are computed again, as long as they are.
        self._keep_activations: Callable[[], None] | None = None

    def train(self, mode: bool = True) -> Student:
        """Set the training mode, but leave the model without dropout: only blocks that compute activations again need it."""
        super().train(mode)
        for module in self.model.modules():
            again = self._keep_activations is not None and hasattr(module, "gradient_checkpointing")
            module.training = mode and again
        return self

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, rows: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Return the divergence of a batch from the teacher, summed over its predicted tokens.

        The logits of one band at a time are in memory: the gradients with respect to the hidden states are added up band by
        band, and pass through the body once.
        """
        states, copy, bands = self.predictor.differentiable(input_ids, attention_mask)
        total = torch.zeros((), device=states.device)
        divergences = self.teacher.divergences(input_ids, attention_mask, rows)
        with torch.enable_grad():
            for (logits, _, valid), divergence in zip(bands, divergences, strict=True):
                loss = torch.where(valid, divergence(logits), 0.0).sum()
                torch.autograd.backward(loss, inputs=[copy])
                total += loss.detach()
        # Its value is the loss, and its gradient with respect to the states is the sum over the bands.
        gradient = torch.zeros_like(states) if copy.grad is None else copy.grad
        through = (states * gradient).sum(dtype=torch.float32)
        return {"loss": total + through - through.detach()}

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Let the model compute its activations again in the backward pass; newer Trainers call this."""
        self.model.activation_checkpointing_enable(**options)
        self._keep_activations = self.model.activation_checkpointing_disable

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """Do the same for older Trainers."""
        self.model.gradient_checkpointing_enable(**options)
        self._keep_activations = self.model.gradient_checkpointing_disable

    def keep_activations(self) -> None:
        """Undo :meth:`activation_checkpointing_enable`."""
        if self._keep_activations is not None:
            self._keep_activations()
            self._keep_activations = None

    def learned(self) -> dict[str, torch.Tensor]:
        """Return the parameters that learn, by name."""
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return what a checkpoint of the training must hold: the parameters that learn."""
        return {name: value.detach() for name, value in self.learned().items()}

    def load_state_dict(self, state_dict: Mapping[str, Any], *_: Any, **__: Any) -> Any:
        """Read what :meth:`state_dict` has returned."""
        self.read(state_dict.__getitem__)
        return SimpleNamespace(missing_keys=[], unexpected_keys=[])

    @torch.no_grad()
    def read(self, find: Callable[[str], torch.Tensor]) -> None:
        """Set each of the parameters that learn to the tensor that is found for its name."""
        for name, value in self.learned().items():
            value.copy_(find(name))

    @contextmanager
    def _as_stored(self) -> Iterator[None]:
        """Merge adapters, and round the parameters, within the context as they will be stored."""
        adapters = _adapters_of(self.model) if self._stored else []
        for adapter in adapters:
            adapter.merge()
        exact = {each: each.data for each in self._stored if each.requires_grad or adapters}
        try:
            for parameter, values in exact.items():
                parameter.data = values.to(self._stored[parameter]).to(values.dtype)
            yield
        finally:
            for parameter, values in exact.items():
                parameter.data = values
            for adapter in adapters:
                adapter.unmerge()

    @torch.no_grad()
    def measure(
        self, batches: Sequence[tuple[torch.Tensor, torch.Tensor]], first: int
    ) -> list[tuple[float, float, int]]:
        """Return divergence and loss of every sequence, each summed over its predicted tokens, and their number.

        `first` is the number of the first sequence in the teacher's text.
        """
        found: list[tuple[float, float, int]] = []
        with evaluation_mode(self.model), self._as_stored():
            for ids, mask in batches:
                rows = torch.arange(first + len(found), first + len(found) + len(ids))
                sums = torch.zeros(3, len(ids), dtype=torch.float64)
                teacher = self.teacher.divergences(ids, mask, rows, comes_again=True)
                for (logits, targets, valid), divergence in zip(self.predictor.bands(ids, mask), teacher, strict=True):
                    flat = at_least_float32(logits).flatten(0, 1), targets.flatten()
                    losses = nn.functional.cross_entropy(*flat, reduction="none").view_as(targets)
                    for row, values in enumerate((divergence(logits), losses, torch.ones_like(losses))):
                        sums[row] += torch.where(valid, values, 0.0).double().sum(1).cpu()
                found += [(float(kl), float(loss), int(n)) for kl, loss, n in sums.T]
        return found


@contextmanager
def learning(model: Any, settings: Distillation) -> Iterator[dict[nn.Parameter, torch.dtype]]:
    """Let the parameters learn that the settings name, in float32; then merge adapters, and restore modes, dtypes and flags.

    Yields
    ------
    dict from parameter to torch.dtype
        The dtypes in which parameters will be stored, where they learn in another one.

    Raises
    ------
    OptionError
        No parameter can learn, or adapters do not fit a model whose weights are masked.
    """
    if settings.learn == "lora" and any(name.endswith("weight_orig") for name, _ in model.named_parameters()):
        raise OptionError(
            "adapters of LoRA cannot be merged into weights of the form mask; prune compactly, or use learn='all'"
        )
    before = [(parameter, parameter.requires_grad, parameter.data) for parameter in model.parameters()]
    stored = {parameter: parameter.dtype for parameter in model.parameters() if parameter.dtype in HALF}
    with evaluation_mode(model):
        try:
            model.requires_grad_(requires_grad=False)
            for parameter, _, values in before:
                if values.dtype in HALF:  # steps are smaller than the resolution of half precision
                    parameter.data = values.float()
            with _adapters(model, settings) if settings.learn == "lora" else nullcontext():
                for parameter in () if settings.learn == "lora" else _parameters(model, settings.learn):
                    parameter.requires_grad_()
                yield stored
        finally:
            for parameter, flag, values in before:
                if parameter.dtype != values.dtype:
                    parameter.data = values.copy_(parameter.data)
                parameter.requires_grad_(flag)
                parameter.grad = None


def _parameters(model: Any, learn: str) -> list[nn.Parameter]:
    """Return the parameters that learn: those of the FFNs, or all of the body but embeddings."""
    if learn == "ffn":
        ffns = find_ffns(model)
        modules = (*ffns.modules, *ffns.router_modules)
        return [each for module in modules for each in module.parameters() if each.is_floating_point()]
    head = model.get_output_embeddings()
    kept = {id(each) for module in model.modules() if isinstance(module, nn.Embedding) for each in module.parameters()}
    kept |= {id(each) for each in (() if head is None else head.parameters())}
    found = [each for each in model.base_model.parameters() if id(each) not in kept and each.is_floating_point()]
    if not found:
        raise OptionError(f"{type(model).__name__} has no weights besides its embeddings, so nothing can learn")
    return found


@contextmanager
def _adapters(model: Any, settings: Distillation) -> Iterator[None]:
    """Have adapters of LoRA around all linear maps of a model but its head, and merge them at the end.

    An error while they are made or merged, such as one of memory, takes them out again.
    """
    # Imported here, because it is optional.
    from peft import LoraConfig, get_peft_model

    children = [(owner, name, child) for owner in model.modules() for name, child in owner.named_children()]
    attributes = {*vars(model)}

    def take_out() -> None:
        for owner, name, child in children:
            setattr(owner, name, child)
        for name in vars(model).keys() - attributes:
            delattr(model, name)

    torch.manual_seed(settings.seed)
    config = LoraConfig(r=settings.rank, lora_alpha=2 * settings.rank, target_modules="all-linear")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft reads a name of transformers that will go
            adapted: Any = get_peft_model(model, config)
    except BaseException:
        take_out()
        raise
    adapters = _adapters_of(model)
    try:
        yield
    finally:
        try:
            adapted.merge_and_unload()
        except BaseException:
            for adapter in adapters:
                if adapter.merged:
                    adapter.unmerge()
            take_out()
            raise


def _adapters_of(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "get_delta_weight")]
