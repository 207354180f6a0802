"""Find the value and output maps of every attention, by what they compute.

A single token can only attend to itself, with weight 1: what an attention's output map then reads is, entry for entry,
what its value map returned. So each linear map of a block is watched while the model reads some tokens one by one, and
the map whose outputs turn up in what another one reads is the value map. That tells which rows of a fused map are the
values, in whatever order it holds queries, keys and values, and which heads share them, without the model's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from llmrank.calibration.forward import body_of, evaluation_mode, model_inputs, run_body, unpadded_rows
from llmrank.calibration.residual import block_path
from llmrank.errors import CalibrationError, UnsupportedModelError
from llmrank.models import FFN, Projection
from llmrank.models.detect import is_linear

__all__ = ["SelectedRows", "find_attentions"]

# Enough that two entries do not agree in all by chance, in eight significant bits either.
PROBES = 16
# Of the largest value: an attention weight of 1 changes no more than the last bits.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class SelectedRows(Projection):
    """Some output rows of a linear map in any order, also several times; its weight is a copy.

    Attributes
    ----------
    rows : (size,) int64 tensor
    """

    rows: torch.Tensor

    @property
    def weight(self) -> torch.Tensor:
        """The (size, in_features) weight."""
        whole = Projection.whole(self.name, self.module).weight
        return whole[self.rows.to(whole.device)]


def find_attentions(model: nn.Module, ffns: Sequence[FFN]) -> dict[str, FFN]:
    """The attention in front of every FFN.

    Parameters
    ----------
    model : nn.Module
        A transformers model whose blocks have one attention each.
    ffns : sequence of FFN
        In a repeating stack.

    Returns
    -------
    dict from str to FFN
        By the FFN's name: of the kind attention, with two stages. ``|V|`` has a row for each input of the output map: heads
        that share values each have their own.

    Raises
    ------
    UnsupportedModelError
        Encoder-decoder models, whose decoders attend to two streams; models that read no token ids; a block without a map
        that returns what another one reads, or with several, or whose weights are offloaded.
    StructureError
        FFNs outside a stack of blocks.
    CalibrationError
        NaN or Inf on the way.

    Notes
    -----
    Cost: a forward pass over 16 tokens, and in every block the distances between what its maps read and return for them.

    Examples
    --------
    >>> from llmrank.models import find_ffns
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4)
    >>> model = LlamaForCausalLM(config)
    >>> found = find_attentions(model, find_ffns(model))["model.layers.0.mlp"]
    >>> [stage[0].name for stage in found.stages]
    ['model.layers.0.self_attn.v_proj', 'model.layers.0.self_attn.o_proj']
    """
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{type(model).__name__} is an encoder-decoder model, whose decoder attends to two streams: its attentions cannot "
            "be edges of the graph; leave attention out"
        )
    own = {projection.name for ffn in ffns for stage in ffn.stages for projection in stage}
    blocks: dict[str, dict[str, nn.Module]] = {}
    for ffn in ffns:
        path = block_path(ffn)
        inside = model.get_submodule(path).named_modules(prefix=path)
        blocks[path] = {name: module for name, module in inside if is_linear(module) and name not in own}
    watched = {name: module for maps in blocks.values() for name, module in maps.items()}
    passed = _passed(model, ffns, watched)
    found: dict[str, FFN] = {}
    taken: set[str] = set()
    for ffn in ffns:
        path = block_path(ffn)
        if path in taken:
            continue
        taken.add(path)
        found[ffn.name] = _attention(path, ffn, blocks[path], passed)
    return found


def _passed(
    model: nn.Module, ffns: Sequence[FFN], maps: dict[str, nn.Module]
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """What linear maps read and returned for single tokens, (tokens, n) each."""
    lookup: Any = getattr(model, "get_input_embeddings", None)
    size = getattr(lookup() if callable(lookup) else None, "num_embeddings", None)
    if not isinstance(size, int) or getattr(model, "config", None) is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} is no transformers model that reads token ids, by which attentions are found; leave "
            "attention out"
        )
    ids = torch.randperm(size, generator=torch.Generator().manual_seed(0))[:PROBES, None]
    passed: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def keep(name: str, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        passed[name] = unpadded_rows(inputs[0], None).float(), unpadded_rows(output, None).float()

    with ExitStack() as hooks, torch.no_grad(), evaluation_mode(model):
        for name, module in maps.items():
            hook = module.register_forward_hook(lambda _module, inputs, output, n=name: keep(n, inputs, output))
            hooks.callback(hook.remove)
        inputs, *_ = model_inputs(model, ids, torch.ones_like(ids, dtype=torch.bool))
        run_body(body_of(model, ffns), inputs)
    for name, pair in passed.items():
        if not all(bool(torch.isfinite(values).all()) for values in pair):
            raise CalibrationError(
                f"what {name} reads or returns is not finite: the weights hold NaN or Inf, or the dtype overflows; load the "
                "model in float32 or bfloat16 and check its perplexity"
            )
    return passed


def _attention(
    path: str, ffn: FFN, maps: dict[str, nn.Module], passed: dict[str, tuple[torch.Tensor, torch.Tensor]]
) -> FFN:
    """The attention of one block."""
    pairs = []
    for output in maps:
        for value in maps:
            if value != output and value in passed and output in passed:
                rows = _source_rows(passed[output][0], passed[value][1])
                if rows is not None:
                    pairs.append((value, output, rows))
    if len(pairs) != 1:
        listed = ", ".join(f"{value} and {output}" for value, output, _ in pairs) or ", ".join(maps) or "no linear map"
        raise UnsupportedModelError(
            f"expected one pair of linear maps in {path} of which the second reads just what the first returns for a single "
            f"token, the value and the output map of an attention; found {len(pairs)} (seen: {listed}): leave attention out"
        )
    value, output, rows = pairs[0]
    for name in (value, output):
        if Projection.whole(name, maps[name]).weight.is_meta:
            raise UnsupportedModelError(
                f"{name} holds no data here (offloaded or on the meta device), and the weights of attentions are edges of the "
                "graph; load the model whole, or leave attention out"
            )
    source = _selected(value, maps[value], rows)
    stages = ((source,), (Projection.whole(output, maps[output]),))
    if source.in_features != ffn.sizes[0] or stages[1][0].size != ffn.sizes[0]:
        raise UnsupportedModelError(
            f"{value} reads {source.in_features} numbers and {output} returns {stages[1][0].size}, but {ffn.name} reads "
            f"{ffn.sizes[0]}: they do not share a residual stream; leave attention out"
        )
    name = output.rpartition(".")[0]
    return FFN(name, "attention", stages, ffn.stack, maps[output])


def _source_rows(read: torch.Tensor, returned: torch.Tensor) -> torch.Tensor | None:
    """For every column of `read` the column of `returned` that equals it, or None where one has none."""
    if len(read) != len(returned):
        return None
    returned = returned.to(read.device)
    scale = returned.abs().max()
    # Equal up to rounding, column by column; a first look at one of them spares most pairs the rest.
    for columns in (slice(0, 1), slice(None)):
        distance = torch.cdist(read.T[columns].contiguous(), returned.T.contiguous(), p=float("inf"))
        nearest = distance.min(dim=1)
        if not bool((nearest.values <= TOLERANCE * scale).all()):
            return None
    return nearest.indices.cpu()


def _selected(name: str, module: nn.Module, rows: torch.Tensor) -> Projection:
    start = int(rows[0])
    if torch.equal(rows, torch.arange(start, start + len(rows))):
        return Projection(name, module, start, len(rows))
    return SelectedRows(name, module, 0, len(rows), rows)
