"""Whether the hidden neurons of an FFN can be removed one by one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from llmrank.errors import UnsupportedModelError
from llmrank.models.ffn import FFN
from llmrank.models.finding.tracing import trial_run

__all__ = ["check_neurons_separate"]


def check_neurons_separate(ffn: FFN, stream_size: int | None) -> None:
    """Raise an error if the hidden neurons of an FFN cannot be removed one by one, because one changes another.

    The FFN runs twice on random features. In the second run the outputs of the input maps are changed at one neuron, and only
    this neuron may change in what the next map reads. `stream_size` is the size of the residual stream, if the configuration
    states it.
    """
    input_maps, next_map = ffn.stages[0], ffn.stages[1][0].module
    weight = input_maps[0].weight
    if weight.is_meta:
        return
    neuron = min(1, ffn.sizes[1] - 1)
    read: list[torch.Tensor] = []

    def shift(position: int) -> Callable[[nn.Module, object, torch.Tensor], torch.Tensor]:
        def hook(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
            output = output.clone()
            output[..., position] += 3.0
            return output

        return hook

    handles = [next_map.register_forward_pre_hook(lambda _module, inputs: read.append(inputs[0].detach().float()))]
    probe = torch.randn(1, 2, ffn.sizes[0], generator=torch.Generator().manual_seed(0)).to(weight)
    try:
        with trial_run(ffn.module):
            ffn.module(probe)
            handles += [each.module.register_forward_hook(shift(each.start + neuron)) for each in input_maps]
            ffn.module(probe)
    # The FFN's module may be a transformer block, which needs more inputs than one. Then only the shapes can be judged.
    except Exception as error:
        if ffn.kind == "plain" and ffn.sizes[1] < ffn.sizes[0] != stream_size:
            raise UnsupportedModelError(
                f"{ffn.name} ({type(ffn.module).__name__}) does not run on a single tensor, and its linear maps "
                f"{ffn.stages[0][0].name} and {ffn.stages[1][0].name} do not show by their shapes which is the output map; "
                "expected more neurons than the residual stream is wide: name Linears with structure_dict="
            ) from error
        return
    finally:
        for handle in handles:
            handle.remove()
    if len(read) != 2 or read[0].shape != read[1].shape or read[0].shape[-1] != ffn.sizes[1]:
        return
    changed = (read[0] != read[1]).reshape(-1, ffn.sizes[1]).any(0)
    changed[neuron] = False
    if changed.any():
        other = int(changed.nonzero()[0])
        raise UnsupportedModelError(
            f"{ffn.name} ({type(ffn.module).__name__}) has the shapes of a {ffn.kind} FFN, but its hidden neurons "
            f"{neuron} and {other} are not separate (a norm, a choice of the largest or an interleaved layout between the maps): "
            "it cannot be pruned by hidden neuron; use structure_dict= to prune rows of named Linears"
        )
