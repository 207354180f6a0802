"""Find the transformer blocks that can be left out, by a trial."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from llmrank.errors import UnsupportedModelError
from llmrank.models.blocks import TransformerBlock
from llmrank.models.ffn import FFNs
from llmrank.models.forward import body_of, evaluation_mode, model_inputs, run_on_calibration_inputs, token_embeddings

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
    calls: dict[str, list[int | None]] = {}

    def record(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        hidden = args[0] if args else kwargs.get("hidden_states")
        values, others = (output[0], output[1:]) if isinstance(output, tuple) else (output, None)
        fits = isinstance(hidden, torch.Tensor) and isinstance(values, torch.Tensor) and values.shape == hidden.shape
        if fits and all(value is None for value in others or ()):
            calls[name].append(None if others is None else len(others))
        else:
            calls[name] += [None, None]  # counts as two calls, so the block stays

    paths = {ffn.block: model.get_submodule(ffn.block) for ffn in ffns}
    ids = (torch.arange(N_TOKENS) % size)[None]
    with ExitStack() as hooks, torch.no_grad(), evaluation_mode(model):
        for path, module in paths.items():
            calls[path] = []
            hook = module.register_forward_hook(
                lambda _module, args, kwargs, output, name=path: record(name, args, kwargs, output), with_kwargs=True
            )
            hooks.callback(hook.remove)
        inputs, *_ = model_inputs(model, ids, torch.ones_like(ids, dtype=torch.bool))
        run_on_calibration_inputs(model, body_of(model, ffns), inputs)
    blocks = {
        path: TransformerBlock(path, lists[0], module, (calls[path] or [None])[0], stays=len(calls[path]) != 1)
        for path, module in paths.items()
    }
    if all(block.stays for block in blocks.values()):
        raise UnsupportedModelError(
            f"the blocks of {type(model).__name__} cannot be left out: each must get the hidden states as its first argument, "
            "and return nothing else; leave blocks out of the targets"
        )
    return FFNs(replace(ffn, whole_block=blocks[ffn.block]) for ffn in ffns)
