"""Whether the hidden neurons of an FFN can be removed one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack

import torch
from torch import nn

from llmrank.errors import UnsupportedModelError
from llmrank.models.ffn import FFN
from llmrank.models.finding.tracing import trial_run
from llmrank.models.linear_map import is_linear

__all__ = ["check_neurons_separate", "check_no_parameter_of_neurons", "parameter_of_neurons"]


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

    probe = torch.randn(1, 2, ffn.sizes[0], generator=torch.Generator().manual_seed(0)).to(weight)
    try:
        with ExitStack() as hooks, trial_run(ffn.module):
            reader = next_map.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].detach().float()))
            hooks.callback(reader.remove)
            ffn.module(probe)
            for each in input_maps:
                hooks.callback(each.module.register_forward_hook(shift(each.start + neuron)).remove)
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


def parameter_of_neurons(ffn: FFN, attention_prefixes: tuple[str, ...]) -> str:
    """Return the path of a parameter whose size suggests that it acts on the hidden neurons, such as a norm between the maps.

    The path is "" if there is no such parameter.
    """
    of_maps = {id(p) for stage in ffn.stages for linear_map in stage for p in linear_map.module.parameters()}
    hidden = set(ffn.sizes[1:-1])
    for path, module in ffn.module.named_modules(prefix=ffn.name):
        prefix = f"{path}." if path else ""
        if prefix.startswith(attention_prefixes):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            # A vector or linear map as wide as the residual stream may act on the stream, as a norm does.
            may_be_on_stream = parameter.ndim < 2 or is_linear(module)
            suspicious = hidden - {ffn.sizes[0], ffn.sizes[-1]} if may_be_on_stream else hidden
            if id(parameter) not in of_maps and suspicious & set(parameter.shape):
                return f"{prefix}{name}"
    return ""


def check_no_parameter_of_neurons(neuron_parameters: Iterable[tuple[FFN, str]]) -> None:
    """Raise an error that names the first parameter that acts on the neurons of an FFN.

    `neuron_parameters` holds each FFN with the path of such a parameter, or with "" if it has none.
    """
    for ffn, parameter in neuron_parameters:
        if parameter:
            raise UnsupportedModelError(
                f"{ffn.name} ({type(ffn.module).__name__}) has the shapes of a {ffn.kind} FFN, but its hidden neurons are not "
                f"separate: {parameter} is another parameter of their size, such as the weight of a norm between the "
                "maps. It cannot be pruned by hidden neuron; use structure_dict= to prune rows of named Linears"
            )
