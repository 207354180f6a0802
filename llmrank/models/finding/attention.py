"""Find the value and output maps of every attention, by what they compute.

In a sequence of one token, the token attends to itself with weight 1. So every input of an attention's output map is an output
of its value map. Hooks record the inputs and outputs of all linear maps of a block on such sequences. The map whose outputs
appear as the inputs of another map is the value map. The match also tells which rows of a fused map (of queries, keys and values)
are the values, and which heads share values.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from llmrank.errors import UnsupportedModelError, not_finite
from llmrank.models.ffn import FFN, FFNs, LinearMap, SelectedRows
from llmrank.models.forward import calls_of, token_embeddings
from llmrank.models.linear_map import is_linear

__all__ = ["find_attentions"]

# Number of tokens to run. With 16 tokens, no two columns of activations agree by chance, even in bfloat16 (8 significant bits).
N_PROBE_TOKENS = 16
# Columns are equal up to this difference, as a share of the largest value.
TOLERANCE = 1e-4


def find_attentions(model: nn.Module, ffns: FFNs, *, skips_others: bool = False) -> dict[str, FFN]:
    """Find the attention of every block that holds FFNs.

    Parameters
    ----------
    model : nn.Module
        A transformers model whose blocks have one attention each.
    ffns : FFNs
        FFNs in a repeating stack of blocks.
    skips_others : bool
        Leave blocks out in which no pair of maps can be a value and an output map, as in layers of linear attention. One block
        must have such a pair.

    Returns
    -------
    dict from str to FFN
        The attention of every block, of the kind "attention", under the name of the first FFN of the block. Its two stages are
        the value map and the output map. Rows of the value map that several heads share are repeated.

    Raises
    ------
    UnsupportedModelError
        The model is an encoder-decoder or does not read token ids; not exactly one pair of maps in a block can be a value and an
        output map; their sizes do not fit the FFN of the block; or their weights are offloaded.
    StructureError
        FFNs lie outside a stack of blocks.
    CalibrationError
        Inputs or outputs contain NaN or Inf, or token ids are not the main input of the model.

    Notes
    -----
    Cost: a forward pass over 16 tokens, and a comparison of all pairs of maps in every block.

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
            "be edges of the graph; leave attention, or heads, out"
        )
    first_ffns: dict[str, FFN] = {}
    for ffn in ffns:
        first_ffns.setdefault(ffn.block, ffn)
    ffn_maps = {linear_map.name for linear_map in ffns.linear_maps}
    blocks: dict[str, dict[str, nn.Module]] = {}
    for path in first_ffns:
        inside = model.get_submodule(path).named_modules(prefix=path)
        # A router may be a linear map by its class, and return more than one tensor.
        routers = tuple(mixture.router_name for mixture in ffns.mixtures)
        blocks[path] = {
            name: module
            for name, module in inside
            if is_linear(module) and name not in ffn_maps and not name.startswith(routers)
        }
    linears = {name: module for maps in blocks.values() for name, module in maps.items()}
    activations = _single_token_activations(model, ffns, linears)
    pairs = {path: _pairs(maps, activations) for path, maps in blocks.items()}
    if skips_others and any(pairs.values()):
        first_ffns = {path: ffn for path, ffn in first_ffns.items() if pairs[path]}
    return {ffn.name: _attention(path, ffn, blocks[path], pairs[path]) for path, ffn in first_ffns.items()}


def _single_token_activations(
    model: nn.Module, ffns: FFNs, maps: dict[str, nn.Module]
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return the inputs and outputs (tokens, n) of linear maps by their names, for sequences of one token."""
    size = getattr(token_embeddings(model), "num_embeddings", None)
    if not isinstance(size, int) or getattr(model, "config", None) is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} is not a transformers model that reads token ids, which are needed to find attentions; "
            "leave attention, or heads, out"
        )
    ids = torch.randperm(size, generator=torch.Generator().manual_seed(0))[:N_PROBE_TOKENS, None]
    calls = {name: of_map[-1] for name, of_map in calls_of(model, ffns, ids, maps).items() if of_map}
    activations = {name: (_rows(args[0]), _rows(output)) for name, (args, _, output) in calls.items()}
    for name, pair in activations.items():
        if not all(bool(torch.isfinite(values).all()) for values in pair):
            raise not_finite(f"the input or output of {name} is")
    return activations


def _rows(values: torch.Tensor) -> torch.Tensor:
    return values.detach().reshape(-1, values.shape[-1]).float()


def _pairs(
    maps: dict[str, nn.Module], activations: dict[str, tuple[torch.Tensor, torch.Tensor]]
) -> list[tuple[str, str, torch.Tensor]]:
    """Return the maps of a block that can be a value and an output map, and the rows of the value map that are read."""
    pairs = []
    for output in maps:
        for value in maps:
            if value != output and value in activations and output in activations:
                rows = _matching_columns(activations[output][0], activations[value][1])
                if rows is not None:
                    pairs.append((value, output, rows))
    return pairs


def _attention(path: str, ffn: FFN, maps: dict[str, nn.Module], pairs: Sequence[tuple[str, str, torch.Tensor]]) -> FFN:
    """Make the attention of one block of the only pair of maps that can be one; `ffn` is the first FFN in the block."""
    if len(pairs) != 1:
        listed = ", ".join(f"{value} and {output}" for value, output, _ in pairs) or ", ".join(maps) or "no linear map"
        raise UnsupportedModelError(
            f"expected one pair of linear maps in {path} such that for a single token the input of the second is the output of "
            "the first (the value and the output map of an attention); found "
            f"{len(pairs)} (seen: {listed}): leave attention, or heads, out"
        )
    value, output, rows = pairs[0]
    for name in (value, output):
        if LinearMap.whole(name, maps[name]).weight.is_meta:
            raise UnsupportedModelError(
                f"{name} holds no data here (offloaded or on the meta device), and the weights of attentions are edges of the "
                "graph; load the model with all its weights, or leave attention, or heads, out"
            )
    value_map = SelectedRows.of(value, maps[value], rows)
    stages = ((value_map,), (LinearMap.whole(output, maps[output]),))
    if value_map.in_features != ffn.sizes[0] or stages[1][0].size != ffn.sizes[0]:
        raise UnsupportedModelError(
            f"{value} has {value_map.in_features} inputs and {output} has {stages[1][0].size} outputs, but {ffn.name} has "
            f"{ffn.sizes[0]} inputs: they do not share a residual stream; leave attention, or heads, out"
        )
    name = output.rpartition(".")[0]
    return FFN(name, "attention", stages, ffn.stack, maps[output])


def _matching_columns(read: torch.Tensor, returned: torch.Tensor) -> torch.Tensor | None:
    """Return for every column of `read` the number of the equal column of `returned`; None if a column has no equal one.

    `read` is the input (tokens, n) of one linear map, and `returned` the output of another.
    """
    if len(read) != len(returned):
        return None
    returned = returned.to(read.device)
    scale = returned.abs().max()
    # The first column is compared first, because it alone rules out most pairs of maps.
    for columns in (slice(0, 1), slice(None)):
        distance = torch.cdist(read.T[columns].contiguous(), returned.T.contiguous(), p=float("inf"))
        nearest = distance.min(dim=1)
        if not bool((nearest.values <= TOLERANCE * scale).all()):
            return None
    return nearest.indices.cpu()
