"""Forward passes: what a model is given, which tokens count, and hooks that watch what passes a module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any, Protocol

import torch
from torch import nn

from llmrank.errors import CalibrationError, OptionError
from llmrank.models import FFN

__all__ = [
    "Accumulator",
    "Progress",
    "TokenMasks",
    "add_hook",
    "at_least_float32",
    "body_of",
    "check_ids",
    "evaluation_mode",
    "first_output",
    "fitting_length",
    "input_device",
    "is_decoder",
    "longest_input",
    "model_inputs",
    "progress_step",
    "run_body",
    "run_sequences",
    "substitute_forward",
    "unpadded_rows",
    "write_count",
]

# ``progress(items, description)`` returns an iterable over the items.
Progress = Callable[[Sequence[Any], str], Any]


@contextmanager
def progress_step(progress: Progress | None, description: str) -> Iterator[None]:
    """Tell a progress of work that is one step; None hears nothing."""
    for _ in progress([None], description) if progress else [None]:
        yield


@dataclass
class TokenMasks:
    """Which tokens of the batch that passes are not padding; None means all.

    Attributes
    ----------
    input, decoder : (batch, length) bool tensor or None
        Of the model's input, and of the decoder side of an encoder-decoder model.
    """

    input: torch.Tensor | None = None
    decoder: torch.Tensor | None = None

    def take(self, other: TokenMasks) -> None:
        """Become those of the next batch: hooks hold on to this object."""
        self.input, self.decoder = other.input, other.decoder


class Accumulator(Protocol):
    """What takes the values that pass a module."""

    def add(self, values: torch.Tensor, mask: torch.Tensor | None) -> None:
        """Values (..., n) of one batch, and which of their rows count."""


def unpadded_rows(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The rows (tokens, n) of values (..., n) that are not padding."""
    values = values.detach()
    if mask is not None:
        values = values[mask.to(values.device)]
    return values.reshape(-1, values.shape[-1])


def model_inputs(
    model: nn.Module, ids: torch.Tensor, mask: torch.Tensor, *, text_only: bool = False
) -> tuple[dict[str, Any], torch.Tensor | None, torch.Tensor | None]:
    """Keyword inputs of a forward pass, and the token masks of the input and the decoder side.

    Encoder-decoder models are run as prefix language models: the encoder reads the first half of a
    sequence, the decoder (teacher forcing) the second, shifted by its start token.

    Some decoders skip the blocks that attend to an image where there is none (Mllama). They are given one vector of zeros for
    it, unless `text_only`: nothing is attended to, and the FFNs of these blocks read the text.

    Raises
    ------
    CalibrationError
        Token ids outside the model's vocabulary, features for a language model, or a model that reads no token ids.
    """
    config = getattr(model, "config", None)
    if config is not None:
        main = getattr(model, "main_input_name", "input_ids")
        try:
            _ = main == "input_ids" and model.get_input_embeddings()  # type: ignore[operator]
        except NotImplementedError:  # what transformers says of models without one lookup for tokens (CLIP)
            main = "more than token ids"
        if main != "input_ids":
            raise CalibrationError(
                f"{type(model).__name__} reads {main}, and calibration passes token ids alone; expected a language model: prune "
                "its text model by itself if it has one, or wrap it in a plain nn.Module whose forward takes one tensor, and "
                "give such a tensor as calibration="
            )
        check_ids(model, ids)
    elif ids.is_floating_point():
        ids = ids.to(next(model.parameters()).dtype)
    device = input_device(model)
    ids, mask = ids.to(device), mask.to(device)
    full = bool(mask.all())
    if not getattr(config, "is_encoder_decoder", False):
        inputs: dict[str, Any] = {"input_ids": ids}
        if config is not None:
            inputs["attention_mask"] = mask.long()
            if getattr(config, "use_cache", False):
                inputs["use_cache"] = False
            if not text_only and "cross_attention_states" in signature(model.forward).parameters:
                like = next(model.parameters())
                size = (config.get_text_config() if hasattr(config, "get_text_config") else config).hidden_size
                inputs["cross_attention_states"] = torch.zeros(len(ids), 1, size, dtype=like.dtype, device=device)
        return inputs, None if full else mask, None
    half = ids.shape[1] // 2
    start = getattr(config, "decoder_start_token_id", None)
    targets = ids[:, half:]
    shifted = torch.cat([torch.full_like(targets[:, :1], 0 if start is None else start), targets[:, :-1]], dim=1)
    inputs = {
        "input_ids": ids[:, :half],
        "attention_mask": mask[:, :half].long(),
        "decoder_input_ids": shifted,
        "decoder_attention_mask": mask[:, half:].long(),
        "use_cache": False,
    }
    return inputs, None if full else mask[:, :half], None if full else mask[:, half:]


def input_device(model: nn.Module) -> torch.device:
    """The device that a model's inputs belong on: where its first parameter is when the model computes.

    Parameters
    ----------
    model : nn.Module
        May be spread over several devices or offloaded by accelerate, which moves what its modules read by itself.

    Raises
    ------
    OptionError
        The first parameter holds no data, and nothing brings it in.
    """
    name, parameter = next(model.named_parameters())
    if not parameter.is_meta:
        return parameter.device
    # The hook that brings an offloaded parameter in belongs to its module, or to one around that.
    while name:
        name = name.rpartition(".")[0]
        hook: Any = getattr(model.get_submodule(name), "_hf_hook", None)
        for part in getattr(hook, "hooks", (hook,)):
            device = getattr(part, "execution_device", None)
            if device is not None:
                return torch.device(device)
    raise OptionError(
        f"{type(model).__name__} begins with a parameter that holds no data (it is on the meta device, and not offloaded by "
        "accelerate); load the model with its weights"
    )


def longest_input(model: nn.Module) -> int | None:
    """Tokens that a model with learnt positions can take, None where nothing limits them."""
    config = getattr(model, "config", None)
    stated = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions"))
    # XLNet says -1 where it means no limit.
    longest = next((value for value in stated if isinstance(value, int) and value > 0), None)
    if longest is None:
        return None
    lookup: Any = getattr(model, "get_input_embeddings", None)
    tokens = lookup() if callable(lookup) else None
    for module in model.modules():
        # RoBERTa counts positions from behind its padding index.
        if isinstance(module, nn.Embedding) and module is not tokens and module.num_embeddings == longest:
            return longest - (0 if module.padding_idx is None else module.padding_idx + 1)
    return longest


def fitting_length(model: nn.Module, length: int) -> int:
    """`length`, capped at the tokens that the model can take."""
    longest = longest_input(model)
    return length if longest is None else min(length, longest)


def check_ids(model: nn.Module, ids: torch.Tensor) -> None:
    """Raise unless a language model can read these ids; before they reach a GPU, where a bad one kills the whole context.

    Parameters
    ----------
    model : transformers model
    ids : (n, length) tensor

    Raises
    ------
    CalibrationError
        No integers, outside the model's vocabulary, or longer than it takes.
    """
    if ids.is_floating_point():
        raise CalibrationError(
            f"{type(model).__name__} reads token ids, and the calibration tensor holds {ids.dtype}; expected an integer "
            "tensor of shape (n, length)"
        )
    longest = longest_input(model)
    if longest is not None and ids.shape[1] > longest:
        raise CalibrationError(
            f"the sequences are {ids.shape[1]} tokens long, and {type(model).__name__} takes {longest}; cut the tensor to "
            "that length"
        )
    lookup: Any = getattr(model, "get_input_embeddings", None)
    embeddings = lookup() if callable(lookup) else None
    size = getattr(embeddings, "num_embeddings", None)
    if isinstance(size, int) and not 0 <= int(ids.min()) <= int(ids.max()) < size:
        raise CalibrationError(
            f"token ids run from {int(ids.min())} to {int(ids.max())}, but {type(model).__name__} has {size} tokens; the "
            "tokens belong to another tokenizer"
        )


def is_decoder(model: nn.Module, ffn: FFN) -> bool:
    """Whether an FFN lies on the decoder side of an encoder-decoder model, where other tokens are padding."""
    config = getattr(model, "config", None)
    return bool(getattr(config, "is_encoder_decoder", False)) and "decoder" in ffn.stack


def run_body(body: nn.Module, inputs: dict[str, Any]) -> Any:
    """Run a forward pass and return its result; a plain module takes the ids (or features) by themselves."""
    return body(**inputs) if hasattr(body, "config") else body(inputs["input_ids"])


def run_sequences(model: nn.Module, ffns: Sequence[FFN], batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Forward passes of batches (ids, mask) for their hooks alone, in evaluation mode and without gradients."""
    body = body_of(model, ffns)
    with torch.no_grad(), evaluation_mode(model):
        for ids, mask in batches:
            run_body(body, model_inputs(model, ids, mask)[0])


def body_of(model: nn.Module, ffns: Sequence[FFN]) -> nn.Module:
    """The model without its prediction head, where that holds every FFN: the logits are not needed."""
    body = getattr(model, "base_model", model)
    inside = {id(module) for module in body.modules()} if isinstance(body, nn.Module) else set()
    if all(id(projection.module) in inside for ffn in ffns for stage in ffn.stages for projection in stage):
        return body
    return model


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode (no dropout), and every module back in its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def add_hook(
    hooks: ExitStack,
    model: nn.Module,
    ffn: FFN,
    module: nn.Module,
    accumulator: Accumulator,
    masks: TokenMasks,
    *,
    output: bool = False,
) -> None:
    """Hand what a module of an FFN reads (or with `output` returns) to an accumulator, until `hooks` closes.

    Parameters
    ----------
    hooks : ExitStack
        Takes the hook away when it closes.
    model : nn.Module
    ffn : FFN
    module : nn.Module
        One of its linear maps.
    accumulator : Accumulator
    masks : TokenMasks
        Of the batch that passes.
    output : bool
    """
    side = "decoder" if is_decoder(model, ffn) else "input"

    def add(values: torch.Tensor) -> None:
        mask: torch.Tensor | None = getattr(masks, side)
        if mask is not None and values.shape[:-1] != mask.shape:
            if values.shape[:-1] != (mask.numel(),):
                raise CalibrationError(
                    f"cannot tell padding from text: an FFN reads {tuple(values.shape)}, the tokens are "
                    f"{tuple(mask.shape)}; calibrate on one text (sequences without padding) instead of a list of texts"
                )
            mask = mask.reshape(-1)
        accumulator.add(values, mask)

    if output:
        handle = module.register_forward_hook(lambda _module, _inputs, result: add(result))
    else:
        handle = module.register_forward_pre_hook(lambda _module, inputs: add(inputs[0]))
    hooks.callback(handle.remove)


def substitute_forward(hooks: ExitStack, module: nn.Module, forward: Callable[..., Any]) -> None:
    """Let a function compute in place of a module (whose hooks stay in force), until `hooks` closes."""
    own = vars(module)
    if "forward" in own:
        hooks.callback(own.__setitem__, "forward", own["forward"])
    else:
        hooks.callback(own.pop, "forward", None)
    own["forward"] = forward


def write_count(values: torch.Tensor) -> int | None:
    """How often something was written into a tensor; None where torch does not keep count."""
    return None if values.is_inference() else values._version


def first_output(output: Any) -> Any:
    """The hidden states among what a block returned."""
    return output if isinstance(output, torch.Tensor) else output[0]


def at_least_float32(values: torch.Tensor) -> torch.Tensor:
    """Values in float32, or float64 where they are."""
    return values if values.dtype == torch.float64 else values.float()
