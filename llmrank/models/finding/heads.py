"""Find which rows of the maps of an attention belong to which head, by the layouts in use, and try the result.

A module computes queries, keys or values alone, or all three: first all queries, then all keys, then all values (Phi-3); or for
each group its queries, its key and its value (GPT-NeoX, Falcon). In a trial, the rows of one group compute other numbers.
Then those that the output map reads must change in this group, and in no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from llmrank.errors import UnsupportedModelError
from llmrank.models.families import text_config
from llmrank.models.ffn import FFN, FFNs, LinearMap, SelectedRows
from llmrank.models.finding.attention import find_attentions
from llmrank.models.forward import calls_of, evaluation_mode, token_embeddings
from llmrank.models.heads import Heads
from llmrank.models.linear_map import is_linear, out_features

__all__ = ["find_heads"]

N_SEQUENCES, N_TOKENS = 2, 8


def find_heads(model: nn.Module, ffns: FFNs) -> dict[str, FFN]:
    """Find the attention of every block that holds FFNs, with its heads.

    Parameters
    ----------
    model, ffns
        See :func:`llmrank.models.finding.attention.find_attentions`.

    Returns
    -------
    dict from str to FFN
        The attention of every block that has one, under the name of the first FFN of the block. Its heads can be pruned.

    Raises
    ------
    UnsupportedModelError
        An attention was not found, see :func:`llmrank.models.finding.attention.find_attentions`; its maps are laid out in an
        unknown way; or its heads depend on each other.
    StructureError, CalibrationError
        See :func:`llmrank.models.finding.attention.find_attentions`.

    Notes
    -----
    Cost: that of `find_attentions`, a forward pass over 16 tokens, and three passes of them through each attention.

    Examples
    --------
    >>> from llmrank.models import find_ffns
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=32, num_hidden_layers=1, **sizes))
    >>> find_heads(model, find_ffns(model))["model.layers.0.mlp"].heads
    Heads(n_heads=4, n_groups=2, size=4)
    """
    config = text_config(model)
    found = {
        name: _with_heads(model.get_submodule(attention.name), attention, config)
        for name, attention in find_attentions(model, ffns, skips_others=True).items()
    }
    calls = _calls(model, ffns, found)
    with torch.no_grad(), evaluation_mode(model):
        for attention in found.values():
            _check_separate(model.get_submodule(attention.name), attention, calls.get(attention.name))
    return found


def _with_heads(module: nn.Module, attention: FFN, config: Any) -> FFN:
    """Return an attention with its heads, and the rows of its maps that belong to them."""
    ((value,), (output,)) = attention.stages
    heads = Heads.of(config, value.size, value.n_rows)
    others = {
        name: each
        for name, each in module.named_modules(prefix=attention.name)
        if is_linear(each) and each is not value.module and each is not output.module
    }
    starts = None if heads is None else _starts(heads, value, others)
    if heads is None or starts is None:
        listed = ", ".join(f"{name} ({out_features(each)} outputs)" for name, each in others.items())
        raise UnsupportedModelError(
            f"the heads of {attention.name} ({type(module).__name__}) are laid out in an unknown way: expected maps of queries, "
            f"keys and values with the same number of outputs for each head, got {value.name} "
            f"({out_features(value.module)} outputs) and {listed or 'no other map'}; or two heads compute the same, as those "
            "that are zero already do; leave heads out of the targets"
        )
    # If all heads share a key and a value, these stay.
    used = starts if heads.n_groups > 1 else starts[:1]
    maps = [SelectedRows.of(name, each, _rows(first, heads.size)) for name, each, first in used]
    if heads.n_groups > 1:
        maps.append(value)
    return replace(attention, heads=heads, maps_of_heads=tuple(maps))


def _starts(
    heads: Heads, value: LinearMap, others: Mapping[str, nn.Module]
) -> list[tuple[str, nn.Module, torch.Tensor]] | None:
    """Return the maps of queries and of keys, and the row at which each head begins; None if the layout is unknown."""
    n_heads, n_groups, size = heads.n_heads, heads.n_groups, heads.size
    group = torch.arange(n_heads) // (n_heads // n_groups)
    first = value.rows[::size]
    if not torch.equal(value.rows, _rows(first, size)):
        return None
    queries, keys = torch.arange(n_heads) * size, group * size
    n_rows = out_features(value.module)
    if n_rows == n_groups * size and torch.equal(first, keys):
        by_size = sorted(others.items(), key=lambda item: -out_features(item[1]))
        if [out_features(each) for _, each in by_size] != [n_heads * size, n_groups * size]:
            return None
        (query_name, query), (key_name, key) = by_size
        return [(query_name, query, queries), (key_name, key, keys)]
    if others or n_rows != (n_heads + 2 * n_groups) * size:
        return None
    if torch.equal(first, (n_heads + n_groups) * size + keys):  # all queries, all keys, all values
        return [(value.name, value.module, queries), (value.name, value.module, n_heads * size + keys)]
    # For each group its queries, its key and its value.
    group_start, within = group * (n_heads // n_groups + 2) * size, torch.arange(n_heads) % (n_heads // n_groups)
    key_start = group_start + n_heads // n_groups * size
    if torch.equal(first, key_start + size):
        return [(value.name, value.module, group_start + within * size), (value.name, value.module, key_start)]
    return None


def _rows(starts: torch.Tensor, size: int) -> torch.Tensor:
    """Return the rows of all heads, of which each begins at one of these rows."""
    return (starts[:, None] + torch.arange(size)).flatten()


def _calls(model: nn.Module, ffns: FFNs, attentions: Mapping[str, FFN]) -> dict[str, tuple[Any, Any]]:
    """Return the arguments by which a forward pass calls every attention."""
    n_ids = N_SEQUENCES * N_TOKENS
    size = getattr(token_embeddings(model), "num_embeddings", n_ids)
    ids = torch.randint(size, (N_SEQUENCES, N_TOKENS), generator=torch.Generator().manual_seed(0))
    modules = {attention.name: model.get_submodule(attention.name) for attention in attentions.values()}
    return {name: calls[-1][:2] for name, calls in calls_of(model, ffns, ids, modules).items() if calls}


def _check_separate(module: nn.Module, attention: FFN, call: tuple[Any, Any] | None) -> None:
    """Raise unless units of an attention can be removed without any effect on the others; the first and the last are tried."""
    heads, output = attention.heads, attention.stages[1][0].module
    assert heads is not None
    reads: list[torch.Tensor] = []

    def run(*maps: LinearMap, unit: slice = slice(0)) -> torch.Tensor:
        with ExitStack() as hooks:
            hooks.callback(output.register_forward_pre_hook(lambda _module, inputs: reads.append(inputs[0])).remove)
            for each in maps:
                hooks.callback(each.module.register_forward_hook(_changes(each.rows[unit])).remove)
            if call is not None:
                args, kwargs = call
                module(*args, **kwargs)
        return reads.pop().flatten(0, -2).float() if len(reads) == 1 else torch.zeros(1, len(heads_of_columns))

    heads_of_columns = torch.arange(heads.n_units).repeat_interleave(heads.unit_size)
    try:
        before = run()
        alone = True
        # The same numbers are computed from the same numbers, so rounding hardly differs.
        rounding = 4 * torch.finfo(attention.stages[1][0].weight.dtype).eps * float(before.abs().max())
        for unit in (0, heads.n_units - 1):
            first = unit * heads.unit_size
            changes = (
                (run(*attention.maps_of_heads, unit=slice(first, first + heads.unit_size)) - before).abs().amax(0).cpu()
            )
            inside = heads_of_columns == unit
            alone &= bool((changes[inside] > 0).float().mean() > 0.5) and not bool((changes[~inside] > rounding).any())
    except (RuntimeError, TypeError, ValueError) as error:  # the attention cannot be called again by itself
        raise UnsupportedModelError(
            f"{attention.name} ({type(module).__name__}) cannot be tried by itself ({error}); leave heads out of the targets"
        ) from error
    if not alone:
        raise UnsupportedModelError(
            f"the heads of {attention.name} ({type(module).__name__}) cannot be removed: a trial shows that they depend on each "
            "other, as with a norm over the queries of all heads, or that their rows are not where they were expected; leave "
            "heads out of the targets"
        )


def _changes(rows: torch.Tensor) -> Any:
    """Return a hook that replaces these numbers of every token by larger ones, which differ from token to token."""

    def hook(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        changed, place = output.clone(), rows.to(output.device)
        changed[..., place] = 8 * output.roll(1, dims=-2).abs().amax() * output.roll(1, dims=-2)[..., place].sign()
        return changed

    return hook
