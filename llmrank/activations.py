"""Forward hooks -> streaming statistics of what flows through the node layers of the FFNs.

Only sums are kept: of the values and of their squares, in float64, over all tokens that are not
padding. The activations themselves are never stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import nn

from llmrank.adapters import FFN
from llmrank.adapters.ffn import bias_of
from llmrank.calibration import TokenSequences
from llmrank.errors import CalibrationError
from llmrank.explained import Explained, ExplainedSums
from llmrank.skips import SkipSums, block_path, hidden_states

__all__ = [
    "Accumulator",
    "AttentionStatistics",
    "FFNStatistics",
    "LayerStatistics",
    "TokenMasks",
    "body_of",
    "check_ids",
    "collect",
    "counted",
    "evaluating",
    "first_output",
    "fitting_length",
    "longest_input",
    "model_inputs",
    "run_body",
    "watch",
    "widened",
]

Progress = Callable[[Sequence[Any], str], Any]


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """What the calibration tokens did at one node layer.

    Attributes
    ----------
    norm : (n,) float64 tensor
        sqrt(sum over tokens of x^2): the activation of the nodes.
    mean : (n,) float64 tensor
        Over tokens.
    variance : (n,) float64 tensor
        Population variance over tokens.
    count : int
        Tokens.
    read_norm : (n,) float64 tensor
        Norm of what the maps that leave this layer read; equal to `norm` except in the explicit
        form, where `norm` is that of the Linear's own output.
    explained : Explained, optional
        What each node explains of what the map that reads it returns; of hidden layers, where it was asked for.
    """

    norm: torch.Tensor
    mean: torch.Tensor
    variance: torch.Tensor
    count: int
    read_norm: torch.Tensor
    explained: Explained | None = None


@dataclass(frozen=True)
class FFNStatistics:
    """Statistics of one FFN.

    Attributes
    ----------
    layers : tuple of LayerStatistics
        Of its k+1 node layers, inputs first.
    skip : float, optional
        Share of the residual stream that goes past its block, see :class:`llmrank.skips.SkipSums`; where it was asked for.
    attention : AttentionStatistics, optional
        Of the attention in front of it, where that was asked for.
    """

    layers: tuple[LayerStatistics, ...]
    skip: float | None = None
    attention: AttentionStatistics | None = None


@dataclass(frozen=True)
class AttentionStatistics:
    """Statistics of one attention.

    Attributes
    ----------
    attention : FFN
        Of the kind attention.
    layers : tuple of LayerStatistics
        Of what its value map reads, of what its output map reads, and of what that returns.
    """

    attention: FFN
    layers: tuple[LayerStatistics, ...]


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


@dataclass(frozen=True)
class _Rows:
    """An accumulator for what takes (tokens, n) alone."""

    take: Callable[[torch.Tensor], None]

    def add(self, values: torch.Tensor, mask: torch.Tensor | None) -> None:
        self.take(counted(values, mask))


class _Accumulator:
    """Streaming sums over tokens."""

    def __init__(self, size: int, device: torch.device) -> None:
        # MPS has no float64.
        wide = torch.float32 if device.type == "mps" else torch.float64
        self.total = torch.zeros(size, dtype=wide, device=device)
        self.squares = torch.zeros(size, dtype=wide, device=device)
        self.count = 0

    def add(self, values: torch.Tensor, mask: torch.Tensor | None) -> None:
        values = counted(values, mask).to(self.total)
        self.total += values.sum(0)
        self.squares += values.square().sum(0)
        self.count += len(values)

    def finish(self, where: str) -> LayerStatistics:
        if self.count == 0:
            raise CalibrationError(
                f"no calibration token passed through {where}: the module was never called in a forward pass; remove it "
                "from the model, or name the Linears to prune with structure_dict="
            )
        total, squares = self.total.double().cpu(), self.squares.double().cpu()
        if not bool(torch.isfinite(squares).all()):
            bad = int((~torch.isfinite(squares)).nonzero()[0])
            raise CalibrationError(
                f"the activations of {where} are not finite, first at neuron {bad}: the weights hold NaN or Inf, or the "
                "dtype overflows; load the model in float32 or bfloat16 and check its perplexity"
            )
        mean = total / self.count
        norm = squares.sqrt()
        return LayerStatistics(norm, mean, (squares / self.count - mean.square()).clamp_min(0), self.count, norm)


def counted(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The rows (tokens, n) of values (..., n) that are not padding."""
    values = values.detach()
    if mask is not None:
        values = values[mask.to(values.device)]
    return values.reshape(-1, values.shape[-1])


def collect(
    model: nn.Module,
    ffns: Sequence[FFN],
    sequences: TokenSequences,
    batch_size: int = 1,
    progress: Progress | None = None,
    *,
    explained: bool = False,
    skips: bool = False,
    attentions: Mapping[str, FFN] | None = None,
) -> tuple[FFNStatistics, ...]:
    """Run the calibration sequences and gather the statistics of every node layer.

    Parameters
    ----------
    model : nn.Module
        Left in the mode (training or evaluation) it came in; runs without gradients. A transformers
        model, or a module that takes the ids alone.
    ffns : sequence of FFN
    sequences : TokenSequences
    batch_size : int
        Sequences at once; the result does not depend on it beyond round-off.
    progress : callable, optional
        ``progress(items, description)`` returns an iterable over the items.
    explained : bool
        Whether to find out what hidden neurons (and the inputs of attentions' output maps) explain of the outputs, see
        :mod:`llmrank.explained`: one product more with every such map. Explicitly listed Linears have no hidden neurons.
    skips : bool
        Whether to measure what share of the residual stream goes past every block.
    attentions : mapping from str to FFN, optional
        The attention in front of an FFN by its name, whose statistics are to be collected too, see :mod:`llmrank.attention`.

    Returns
    -------
    tuple of FFNStatistics
        In the order of `ffns`.

    Raises
    ------
    CalibrationError
        Non-finite activations (the message names the layer), or an FFN that no token reached.
    StructureError
        Skips of FFNs without a residual stream.

    Notes
    -----
    Cost: one forward pass without the prediction head where the model has a separate body. Memory:
    three float64 numbers a node, and what the forward pass takes.
    """
    device = next(model.parameters()).device
    masks = TokenMasks()
    before = attentions or {}
    units = [*ffns, *before.values()]
    body = body_of(model, units)
    blocks: dict[str, SkipSums] = {}
    with ExitStack() as hooks, torch.no_grad(), evaluating(model):
        sums = [_Sums(hooks, model, unit, masks, explained=explained) for unit in units]
        for ffn in ffns if skips else ():
            path = block_path(ffn)
            if path not in blocks:
                blocks[path] = SkipSums(path)
                _watch_block(hooks, model, ffn, model.get_submodule(path), blocks[path], masks)
        batches = list(sequences.batches(batch_size))
        for ids, mask in progress(batches, "Calibrating") if progress else batches:
            inputs, *of_batch = model_inputs(model, ids, mask, device)
            masks.take(TokenMasks(*of_batch))
            run_body(body, inputs)
    layers = [entry.finish() for entry in sums]
    around = dict(zip(before, layers[len(ffns) :], strict=True))
    return tuple(
        FFNStatistics(
            own,
            blocks[block_path(ffn)].share() if skips else None,
            AttentionStatistics(before[ffn.name], around[ffn.name]) if ffn.name in before else None,
        )
        for ffn, own in zip(ffns, layers[: len(ffns)], strict=True)
    )


def model_inputs(
    model: nn.Module, ids: torch.Tensor, mask: torch.Tensor, device: torch.device
) -> tuple[dict[str, Any], torch.Tensor | None, torch.Tensor | None]:
    """Keyword inputs of a forward pass, and the token masks of the input and the decoder side.

    Encoder-decoder models are run as prefix language models: the encoder reads the first half of a
    sequence, the decoder (teacher forcing) the second, shifted by its start token.

    Raises
    ------
    CalibrationError
        Token ids outside the model's vocabulary, or features for a language model.
    """
    config = getattr(model, "config", None)
    if config is not None:
        check_ids(model, ids)
    elif ids.is_floating_point():
        ids = ids.to(next(model.parameters()).dtype)
    ids, mask = ids.to(device), mask.to(device)
    full = bool(mask.all())
    if not getattr(config, "is_encoder_decoder", False):
        inputs: dict[str, Any] = {"input_ids": ids}
        if config is not None:
            inputs["attention_mask"] = mask.long()
            if getattr(config, "use_cache", False):
                inputs["use_cache"] = False
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


def _is_decoder(model: nn.Module, ffn: FFN) -> bool:
    config = getattr(model, "config", None)
    return bool(getattr(config, "is_encoder_decoder", False)) and "decoder" in ffn.stack


def run_body(body: nn.Module, inputs: dict[str, Any]) -> None:
    """A forward pass for its hooks alone; a plain module takes the ids (or features) by themselves."""
    if hasattr(body, "config"):
        body(**inputs)
    else:
        body(inputs["input_ids"])


def body_of(model: nn.Module, ffns: Sequence[FFN]) -> nn.Module:
    """The model without its prediction head, where that holds every FFN: the logits are not needed."""
    body = getattr(model, "base_model", model)
    inside = {id(module) for module in body.modules()} if isinstance(body, nn.Module) else set()
    if all(id(projection.module) in inside for ffn in ffns for stage in ffn.stages for projection in stage):
        return body
    return model


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode (no dropout), and every module back in its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def watch(
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
    side = "decoder" if _is_decoder(model, ffn) else "input"

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


def first_output(output: Any) -> Any:
    """The hidden states among what a block returned."""
    return output if isinstance(output, torch.Tensor) else output[0]


def widened(values: torch.Tensor) -> torch.Tensor:
    """Values in float32, or float64 where they are."""
    return values if values.dtype == torch.float64 else values.float()


def _watch_block(
    hooks: ExitStack, model: nn.Module, ffn: FFN, block: nn.Module, sums: SkipSums, masks: TokenMasks
) -> None:
    """Hand the hidden states around a block to sums, until `hooks` closes."""
    side = "decoder" if _is_decoder(model, ffn) else "input"

    def add(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        mask: torch.Tensor | None = getattr(masks, side)
        before, after = hidden_states(args, kwargs), first_output(output)
        if mask is not None and before.shape[:-1] != mask.shape:
            mask = mask.reshape(-1)
        sums.add(counted(before, mask), counted(after, mask))

    hooks.callback(block.register_forward_hook(add, with_kwargs=True).remove)


class _Sums:
    """All that streams of one FFN (or attention), fed until `hooks` closes."""

    def __init__(self, hooks: ExitStack, model: nn.Module, ffn: FFN, masks: TokenMasks, *, explained: bool) -> None:
        self._ffn = ffn
        self._reads: list[_Accumulator] = []
        self._writes: dict[int, _Accumulator] = {}
        self._explained: dict[int, ExplainedSums] = {}
        for layer, stage in enumerate(ffn.stages):
            self._reads.append(_Accumulator(stage[0].in_features, stage[0].weight.device))
            watch(hooks, model, ffn, stage[0].module, self._reads[-1], masks)
            if ffn.kind == "explicit" or layer == len(ffn.stages) - 1:
                self._writes[layer + 1] = _Accumulator(stage[0].size, stage[0].weight.device)
                watch(hooks, model, ffn, stage[0].module, self._writes[layer + 1], masks, output=True)
        for layer in range(1, len(ffn.stages)) if explained and ffn.kind != "explicit" else ():
            (reader,) = ffn.stages[layer]
            sums = self._explained[layer] = ExplainedSums(reader.weight, bias_of(reader.module))
            watch(hooks, model, ffn, reader.module, _Rows(sums.read), masks)
            watch(hooks, model, ffn, reader.module, _Rows(sums.written), masks, output=True)

    def finish(self) -> tuple[LayerStatistics, ...]:
        """Of every node layer."""
        ffn = self._ffn
        read = [acc.finish(f"{ffn.name} (input of {ffn.stages[k][0].name})") for k, acc in enumerate(self._reads)]
        written = {
            layer: acc.finish(f"{ffn.name} (output of {ffn.stages[layer - 1][0].name})")
            for layer, acc in self._writes.items()
        }
        if ffn.kind == "explicit":
            inner = [
                replace(written[layer], read_norm=read[layer].norm) if layer < len(read) else written[layer]
                for layer in range(1, len(read) + 1)
            ]
            return (read[0], *inner)
        found = [
            replace(entry, explained=self._explained[k].finish()) if k in self._explained else entry
            for k, entry in enumerate(read)
        ]
        return (*found, written[len(read)])
