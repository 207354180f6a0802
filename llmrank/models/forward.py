"""Forward passes: the inputs that a model takes, and how it is run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import nn

from llmrank.errors import CalibrationError, LLMRankError, OptionError
from llmrank.models.experts import by_expert, substitute_forward
from llmrank.models.families import text_config
from llmrank.models.ffn import FFN, FFNs
from llmrank.models.finding.tracing import in_evaluation_mode, trial_run

__all__ = [
    "at_least_float32",
    "body_of",
    "calls_of",
    "check_ids",
    "evaluation_mode",
    "first_output",
    "fitting_length",
    "input_device",
    "is_decoder",
    "longest_input",
    "model_inputs",
    "predicts_next_token",
    "reached_by_tokens",
    "run_body",
    "run_sequences",
    "substitute_forward",
    "token_embeddings",
]

# Length of the sequence that shows which FFNs tokens reach.
TRIAL_TOKENS = 8


def model_inputs(
    model: nn.Module, ids: torch.Tensor, mask: torch.Tensor, *, text_only: bool = False
) -> tuple[dict[str, Any], torch.Tensor | None, torch.Tensor | None]:
    """Return the keyword inputs of a forward pass, and the masks of the input and of the decoder's input, see TokenMasks.

    An encoder-decoder model runs as a prefix language model: the encoder reads the first half of a sequence, and the decoder
    predicts the second half, which it reads shifted by its start token (teacher forcing).

    Mllama, a model of texts and images, skips the blocks that attend to an image if it gets none. Unless `text_only` is set, it
    gets one vector of zeros as the image: attention to this vector adds nothing, and the FFNs of these blocks process the text.

    Raises
    ------
    CalibrationError
        The model does not read token ids, or cannot read these (see :func:`check_ids`).
    OptionError
        See :func:`input_device`.
    """
    config = getattr(model, "config", None)
    if config is not None:
        main = getattr(model, "main_input_name", "input_ids")
        if main == "input_ids" and token_embeddings(model) is None:
            main = "more than token ids"
        if main != "input_ids":
            raise CalibrationError(
                f"{type(model).__name__} reads {main}, and llmrank passes token ids alone; expected a language model: prune "
                "its text model by itself if it has one, or wrap it in a plain nn.Module whose forward takes one tensor, and "
                "pass such a tensor as calibration="
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
            if getattr(config, "use_cache", False) or getattr(text_config(model), "use_cache", False):
                inputs["use_cache"] = False
            # Some models without layers that attend to an image (BLT) have this parameter too, and fail if it is given.
            attends = getattr(text_config(model), "cross_attention_layers", None)
            if not text_only and attends and "cross_attention_states" in signature(model.forward).parameters:
                like = next(model.parameters())
                size = text_config(model).hidden_size
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
    """Return the device for a model's inputs: the device of its first parameter while the model computes.

    Raises
    ------
    OptionError
        The first parameter holds no data, and no hook loads it.
    """
    name, parameter = next(model.named_parameters())
    if not parameter.is_meta:
        return parameter.device
    # The hook of accelerate that loads the parameter belongs to its module, or to a module around it.
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
    """Return the largest number of tokens that a model takes, or None if its configuration states no limit."""
    config = getattr(model, "config", None)
    limits = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions"))
    # XLNet has -1 for no limit.
    longest = next((value for value in limits if isinstance(value, int) and value > 0), None)
    if longest is None:
        return None
    embeddings = token_embeddings(model)
    for module in model.modules():
        # RoBERTa counts positions from its padding index plus 1.
        if isinstance(module, nn.Embedding) and module is not embeddings and module.num_embeddings == longest:
            return longest - (0 if module.padding_idx is None else module.padding_idx + 1)
    return longest


def fitting_length(model: nn.Module, length: int) -> int:
    """Return `length`, or the largest number of tokens that the model takes if that number is smaller."""
    longest = longest_input(model)
    return length if longest is None else min(length, longest)


def check_ids(model: nn.Module, ids: torch.Tensor) -> None:
    """Check that a language model can read token ids (n, length), because a bad id makes a GPU unusable for the process.

    Raises
    ------
    CalibrationError
        The ids are floating-point numbers or outside the vocabulary, or the sequences are longer than the model takes.
    """
    if ids.is_floating_point():
        raise CalibrationError(
            f"{type(model).__name__} reads token ids, and the given tensor holds {ids.dtype}; expected an integer "
            "tensor of shape (n, length)"
        )
    longest = longest_input(model)
    if longest is not None and ids.shape[1] > longest:
        raise CalibrationError(
            f"the sequences are {ids.shape[1]} tokens long, and {type(model).__name__} takes {longest}; cut them to that "
            "length"
        )
    size = getattr(token_embeddings(model), "num_embeddings", None)
    if isinstance(size, int) and not 0 <= int(ids.min()) <= int(ids.max()) < size:
        raise CalibrationError(
            f"token ids run from {int(ids.min())} to {int(ids.max())}, but {type(model).__name__} has {size} tokens; they "
            "may belong to another tokenizer"
        )


def token_embeddings(model: nn.Module) -> Any:
    """Return the module that holds the token embeddings; None for a plain module, or if there is no single one (CLIP)."""
    input_embeddings: Any = getattr(model, "get_input_embeddings", None)
    try:
        return input_embeddings() if callable(input_embeddings) else None
    except NotImplementedError:
        return None


def is_decoder(model: nn.Module, ffn: FFN) -> bool:
    """Whether an FFN lies in the decoder of an encoder-decoder model."""
    config = getattr(model, "config", None)
    return bool(getattr(config, "is_encoder_decoder", False)) and "decoder" in ffn.stack


def run_body(body: nn.Module, inputs: dict[str, Any]) -> Any:
    """Run a forward pass; a module without a config gets the ids (or features) alone."""
    return body(**inputs) if hasattr(body, "config") else body(inputs["input_ids"])


def run_on_calibration_inputs(model: nn.Module, body: nn.Module, inputs: dict[str, Any]) -> None:
    """Run a forward pass as :func:`run_body` does; raise a CalibrationError if the model needs other inputs too."""
    try:
        run_body(body, inputs)
    except LLMRankError:
        raise
    except (TypeError, ValueError, AttributeError, KeyError) as error:  # models raise these for missing inputs
        raise CalibrationError(
            f"{type(model).__name__} does not run on the inputs of calibration, {', '.join(inputs)} alone ({error}); "
            "expected a language model, or a plain module that takes features: if the model contains one (a text_model, "
            "for example), prune that part by itself"
        ) from error


def calls_of(
    model: nn.Module, ffns: FFNs, ids: torch.Tensor, modules: Mapping[str, nn.Module]
) -> dict[str, list[tuple[tuple[Any, ...], dict[str, Any], Any]]]:
    """Run token ids (n, length) through a model, and return the arguments and the output of every call of some modules.

    Raises
    ------
    CalibrationError
        The model does not read token ids, or needs other inputs too.
    """
    calls: dict[str, list[Any]] = {name: [] for name in modules}

    def note(name: str, _module: nn.Module, *call: Any) -> None:
        calls[name].append(call)

    with ExitStack() as hooks, torch.no_grad(), evaluation_mode(model):
        for name, module in modules.items():
            hooks.callback(module.register_forward_hook(partial(note, name), with_kwargs=True).remove)
        inputs, *_ = model_inputs(model, ids, torch.ones_like(ids, dtype=torch.bool))
        run_on_calibration_inputs(model, body_of(model, ffns), inputs)
    return calls


def run_sequences(model: nn.Module, ffns: FFNs, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Run forward passes of batches (ids, mask) without gradients, for the effect of hooks alone."""
    body = body_of(model, ffns)
    with torch.no_grad(), evaluation_mode(model, ffns):
        for ids, mask in batches:
            run_body(body, model_inputs(model, ids, mask)[0])


def reached_by_tokens(model: nn.Module, ffns: FFNs) -> FFNs:
    """Return the FFNs without those of stacks that no token reaches, such as the vision tower of a model that also reads images.

    If the FFNs lie in several stacks, the model runs on one short sequence of token ids. If it fails or no FFN is called, all
    FFNs are returned: calibration will then fail too, and say why.
    """
    if len({ffn.stack for ffn in ffns}) < 2 or getattr(model, "config", None) is None:
        return ffns
    reached: set[str] = set()
    with ExitStack() as hooks, trial_run(model):
        for ffn in ffns:

            def note(*_: Any, stack: str = ffn.stack) -> None:
                reached.add(stack)

            hooks.callback(ffn.stages[0][0].owner.register_forward_pre_hook(note).remove)
        ids = torch.arange(TRIAL_TOKENS)[None]
        try:
            run_body(body_of(model, ffns), model_inputs(model, ids, torch.ones_like(ids, dtype=torch.bool))[0])
        except Exception:  # models may raise anything for inputs that they do not expect
            return ffns
    return FFNs(ffn for ffn in ffns if ffn.stack in reached) or ffns


def body_of(model: nn.Module, ffns: FFNs) -> nn.Module:
    """Return the model without its head, so that no logits are computed; the model itself if an FFN lies outside that part."""
    body = getattr(model, "base_model", model)
    inside = {id(module) for module in body.modules()} if isinstance(body, nn.Module) else set()
    if all(id(module) in inside for module in ffns.modules):
        return body
    return model


@contextmanager
def evaluation_mode(model: nn.Module, ffns: FFNs | None = None) -> Iterator[None]:
    """Set a model to evaluation mode (no dropout), and restore the mode of every module afterwards.

    Some models compute all experts of a mixture at once. With `ffns`, they compute expert by expert within the context, so that
    hooks on the linear maps of experts are called.
    """
    with in_evaluation_mode(model), by_expert(ffns.mixtures if ffns is not None else ()):
        yield


def first_output(output: Any) -> Any:
    """Return the first value of an output: the hidden states of a block, or the logits of a model."""
    return output if isinstance(output, torch.Tensor) else output[0]


def at_least_float32(values: torch.Tensor) -> torch.Tensor:
    """Convert values to float32, unless they are float64."""
    return values if values.dtype == torch.float64 else values.float()


def predicts_next_token(model: nn.Module) -> bool:
    """Whether a model has a head that predicts a token from those before it (also in an encoder-decoder), judged by its class."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(model, "get_output_embeddings"):
        return False
    name = type(model).__name__
    return "CausalLM" in name or "LMHead" in name or "ForConditionalGeneration" in name
