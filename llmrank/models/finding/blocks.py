"""Find the transformer blocks that can be left out, by a trial."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from llmrank.errors import UnsupportedModelError
from llmrank.models.blocks import TransformerBlock
from llmrank.models.ffn import FFNs
from llmrank.models.forward import calls_of, token_embeddings

__all__ = ["with_blocks"]

N_TOKENS = 8


def with_blocks(model: nn.Module, ffns: FFNs) -> FFNs:
    """Return the FFNs with the blocks that they lie in.

    A block can be left out if in a trial it gets the hidden states as its first argument, is called once, and returns hidden
    states of the same shape, alone or in a tuple whose other values are None.

    Parameters
    ----------
    model : nn.Module
        A transformers model with one stack of blocks.
    ffns : FFNs
        FFNs in blocks.

    Returns
    -------
    FFNs
        Blocks that cannot be left out are marked.

    Raises
    ------
    UnsupportedModelError
        The model does not read token ids, its blocks are not in one list, or none of them can be left out.
    StructureError, CalibrationError
        FFNs lie in no stack; or the model needs other inputs than token ids.

    Notes
    -----
    Cost: a forward pass over 8 tokens.

    Examples
    --------
    >>> from llmrank.models import find_ffns
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4)
    >>> model = LlamaForCausalLM(config)
    >>> [ffn.whole_block.name for ffn in with_blocks(model, find_ffns(model))]
    ['model.layers.0', 'model.layers.1']
    """
    stacks = {ffn.stack for ffn in ffns if ffn.stack != ffn.name}
    lists = [model.get_submodule(path) for path in stacks]
    size = getattr(token_embeddings(model), "num_embeddings", None)
    if len(lists) != 1 or not isinstance(lists[0], nn.ModuleList) or not isinstance(size, int):
        raise UnsupportedModelError(
            f"the blocks of {type(model).__name__} cannot be left out: expected a language model whose blocks are in one list, "
            f"got FFNs in {', '.join(sorted(stacks)) or 'no list'}; leave blocks out of the targets"
        )
    paths = {ffn.block: model.get_submodule(ffn.block) for ffn in ffns}
    ids = (torch.arange(N_TOKENS) % size)[None]
    blocks = {}
    for path, calls in calls_of(model, ffns, ids, paths).items():
        fits, n_others = _passes_states(*calls[0]) if len(calls) == 1 else (False, None)
        blocks[path] = TransformerBlock(path, lists[0], paths[path], n_others, stays=not fits)
    if all(block.stays for block in blocks.values()):
        raise UnsupportedModelError(
            f"the blocks of {type(model).__name__} cannot be left out: each must get the hidden states as its first argument, "
            "and return nothing else; leave blocks out of the targets"
        )
    return FFNs(replace(ffn, whole_block=blocks[ffn.block]) for ffn in ffns)


def _passes_states(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> tuple[bool, int | None]:
    """Return whether a block can be left out by what one call got and returned; and how many values None it returned too."""
    hidden = args[0] if args else kwargs.get("hidden_states")
    states, others = (output[0], output[1:]) if isinstance(output, tuple) else (output, None)
    fits = isinstance(hidden, torch.Tensor) and isinstance(states, torch.Tensor) and states.shape == hidden.shape
    return fits and all(value is None for value in others or ()), None if others is None else len(others)
