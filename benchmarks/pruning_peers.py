"""Keep masks of other pruning libraries, so that the same code prunes, repairs and evaluates all of them.

Each peer runs as its documentation says, on the FFNs of a gated model alone. It prunes a copy, or only chooses neurons.
"""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from llmrank import Masks
from llmrank.models import FFNs
from llmrank.text import TokenSequences

__all__ = ["PEERS", "Peer", "versions"]


@dataclass(frozen=True)
class Peer:
    """A library's way to choose hidden neurons.

    Attributes
    ----------
    name
        Unique among the peers.
    library, module
        Distribution name as pip knows it, and import name.
    masks
        ``masks(model, ffns, sequences, amount)``: the keep masks. The model does not change.
    budget
        "local" or "global".
    """

    name: str
    library: str
    module: str
    masks: Callable[[Any, FFNs, TokenSequences, float], Masks]
    budget: str

    @property
    def installed(self) -> bool:
        return find_spec(self.module) is not None


@lru_cache(maxsize=1)
def _gradients(model: Any, sequences: TokenSequences) -> dict[str, torch.Tensor]:
    """Return the gradients of the loss on all sequences, by parameter. They are the same for every budget and amount."""
    try:
        for ids, _ in sequences.batches(1):
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    finally:
        model.zero_grad(set_to_none=True)


def _torch_pruning(
    model: Any, ffns: FFNs, sequences: TokenSequences, amount: float, *, taylor: bool, everywhere: bool
) -> Masks:
    """Let it choose groups of its dependency graph (gate, up and down together), without pruning them."""
    import torch_pruning

    inside = {id(p.module) for ffn in ffns for stage in ffn.stages for p in stage}
    if taylor:
        # Its importance reads the gradients of the loss on the calibration text.
        for name, gradient in _gradients(model, sequences).items():
            model.get_parameter(name).grad = gradient
        importance: Any = torch_pruning.importance.GroupTaylorImportance()
    else:
        importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
    keep = {ffn.name: torch.ones(ffn.sizes[1], dtype=torch.bool) for ffn in ffns}
    owner = {id(ffn.stages[0][0].module): ffn.name for ffn in ffns}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pruner = torch_pruning.pruner.BasePruner(
                model,
                example_inputs=sequences.ids[:1, :32],
                importance=importance,
                global_pruning=everywhere,
                pruning_ratio=amount,
                ignored_layers=[m for m in model.modules() if isinstance(m, nn.Linear) and id(m) not in inside],
                root_module_types=[nn.Linear],
                forward_fn=lambda network, ids: network(input_ids=ids, use_cache=False),
                output_transform=lambda output: output.logits,
            )
            for group in pruner.step(interactive=True):
                for dependency, indices in group:
                    owned = owner.get(id(dependency.target.module))
                    if owned is not None and "out" in dependency.handler.__name__:
                        keep[owned][torch.as_tensor(indices)] = False
    finally:
        model.zero_grad(set_to_none=True)
    return Masks(keep)


def _optipfair(model: Any, ffns: FFNs, sequences: TokenSequences, amount: float, *, data: bool) -> Masks:
    """Let it prune a copy, and find the rows of the gate that the copy still has."""
    import optipfair

    batches = (
        [{"input_ids": ids, "attention_mask": mask.long()} for ids, mask in sequences.batches(1)] if data else None
    )
    with contextlib.redirect_stdout(io.StringIO()):
        pruned = optipfair.prune_model(
            copy.deepcopy(model),
            neuron_selection_method="MAW",
            pruning_percentage=100 * amount,
            dataloader=batches,
            show_progress=False,
        )
    modules = dict(pruned.named_modules())
    keep = {}
    for ffn in ffns:
        gate = ffn.stages[0][0]
        left = {row.float().numpy().tobytes() for row in modules[gate.name].weight.detach()}
        keep[ffn.name] = torch.tensor([row.float().numpy().tobytes() in left for row in gate.weight])
    return Masks(keep)


PEERS: tuple[Peer, ...] = (
    *(
        Peer(
            f"Torch-Pruning, {'Taylor' if taylor else 'magnitude'}",
            "torch-pruning",
            "torch_pruning",
            partial(_torch_pruning, taylor=taylor, everywhere=budget == "global"),
            budget,
        )
        for taylor in (False, True)
        for budget in ("local", "global")
    ),
    Peer("optipfair, MAW", "optipfair", "optipfair", partial(_optipfair, data=False), "local"),
    Peer("optipfair, MAW with data", "optipfair", "optipfair", partial(_optipfair, data=True), "local"),
)


def versions() -> dict[str, str]:
    """Return the version of every installed library, by pip's name."""
    return {peer.library: version(peer.library) for peer in PEERS if peer.installed}
