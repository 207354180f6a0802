"""Mixtures of experts made of the weights of a dense Llama: its FFNs are split into experts, and a router is fitted.

No pretrained mixture is small enough to be fetched for a benchmark, so this module makes one, in the architecture of Mixtral,
which stock transformers loads. Its attention is that of Llama, and every neuron of the dense model is in exactly one expert.

Mixtral adds up the outputs of the chosen experts with weights that sum to 1, whereas an FFN is the sum of all its parts. Hence
the down projections are multiplied by the number of chosen experts k, and the logits of the router are so small that every weight
is near 1/k. With all experts chosen and a router of zeros the mixture computes what the dense model computes.

Neurons that are active together share an expert (as in MoEfication, arXiv 2110.01786): balanced k-means on the covariance of
their contributions ``|x_j| ||down_:j||``. The router predicts the logarithm of the norm of each expert's output by least squares.
Then the down projections are fitted, also by least squares, to what the experts that are not chosen would have added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import transformers
from scipy.optimize import linear_sum_assignment
from torch import nn

from llmrank.text import TokenSequences

__all__ = ["Experts", "Shape", "control", "description", "ffn_inputs", "known_answer", "mixtral", "split"]

# Rounds of balanced k-means; it stops earlier when no neuron moves.
ROUNDS = 5
# Ridge of the router's fit, in the scale of each input.
RIDGE = 1e-3
# Ridge of the fit of the down projections.
DOWN_RIDGE = 0.01


@dataclass(frozen=True)
class Shape:
    """The shape of a mixture.

    Attributes
    ----------
    n_experts, top_k : int
        Number of experts, and of those that every token gets.
    sharpness : float
        The logits of the router are this many times the predicted logarithms: 0 would make all routing weights equal.
    """

    n_experts: int
    top_k: int
    sharpness: float = 0.01


@dataclass(frozen=True, eq=False)
class Experts:
    """The experts of one FFN.

    Attributes
    ----------
    neurons : (experts, width) int64 tensor
        The neurons of the dense FFN that each expert has.
    router : (experts, inputs) float32 tensor
    down : (experts, outputs, width) float32 tensor
        What is added up, with weights whose mean is 1, for the chosen experts.
    """

    neurons: torch.Tensor
    router: torch.Tensor
    down: torch.Tensor

    def weights(self, inputs: torch.Tensor, top_k: int) -> torch.Tensor:
        """Return the weight of every expert for every token, (tokens, experts): 0, or nearly 1 if it is chosen."""
        logits = inputs @ self.router.T
        value, chosen = logits.softmax(-1).topk(top_k, dim=-1)
        value *= top_k / value.sum(-1, keepdim=True)
        return torch.zeros_like(logits).scatter_(1, chosen, value)


@torch.no_grad()
def ffn_inputs(dense: Any, text: TokenSequences) -> list[torch.Tensor]:
    """Return what every FFN of a dense Llama reads on a text without padding: (tokens, inputs) each."""
    seen: list[list[torch.Tensor]] = [[] for _ in dense.model.layers]
    hooks = [
        layer.mlp.register_forward_pre_hook(lambda _, args, found=found: found.append(args[0].flatten(0, 1)))
        for layer, found in zip(dense.model.layers, seen, strict=True)
    ]
    try:
        for ids in text.ids:
            dense.model(ids[None])
    finally:
        for hook in hooks:
            hook.remove()
    return [torch.cat(found) for found in seen]


@torch.no_grad()
def split(dense: Any, text: TokenSequences, shape: Shape, *, refit: bool = True) -> list[Experts]:
    """Split all FFNs of a dense Llama into experts, block by block, on the states of the mixture as far as it is made.

    Parameters
    ----------
    dense : LlamaForCausalLM
    text : TokenSequences
        Without padding, for the clusters, the router and the down projections.
    shape : Shape
    refit : bool
        Whether the down projections are fitted to the outputs of the dense FFN for the same inputs; otherwise they stay as they
        are.
    """
    stream = dense.model.embed_tokens(text.ids)
    places = dense.model.rotary_emb(stream, torch.arange(text.length)[None])
    found = []
    for layer in dense.model.layers:
        for states in stream:
            states += layer.self_attn(layer.input_layernorm(states[None]), places, None)[0][0]
        inputs = layer.post_attention_layernorm(stream).flatten(0, 1)
        hidden = _hidden(layer.mlp, inputs)
        target = layer.mlp.down_proj(hidden)
        # Blocks read the stream through a norm, so errors count in proportion to it; few tokens are a hundred times as long.
        share = 1 / (stream.flatten(0, 1) + target).norm(dim=1, keepdim=True)
        part = _part(layer.mlp.down_proj.weight, inputs, hidden, share, shape)
        order, width = part.neurons.flatten(), part.neurons.shape[1]
        hidden = hidden[:, order] * part.weights(inputs, shape.top_k).repeat_interleave(width, 1)
        down = layer.mlp.down_proj.weight[:, order]
        if refit:
            missing = target - hidden @ down.T
            down = down + _least_squares(hidden * share, missing * share, DOWN_RIDGE)
        stream += (hidden @ down.T).view_as(stream)
        found.append(Experts(part.neurons, part.router, down.view(len(down), -1, width).permute(1, 0, 2)))
    return found


def _hidden(ffn: Any, inputs: torch.Tensor) -> torch.Tensor:
    hidden: torch.Tensor = ffn.act_fn(ffn.gate_proj(inputs)) * ffn.up_proj(inputs)
    return hidden


def _part(down: torch.Tensor, inputs: torch.Tensor, hidden: torch.Tensor, share: torch.Tensor, shape: Shape) -> Experts:
    """Divide the neurons of one FFN among experts, and fit their router; `share` (tokens, 1) multiplies contributions."""
    contribution = hidden.abs() * down.norm(dim=0) * share
    contribution -= contribution.mean(0)
    neurons = _clusters(contribution.T @ contribution, shape.n_experts)
    norms = torch.stack([(hidden[:, part] @ down[:, part].T).norm(dim=1) for part in neurons], 1)
    router = shape.sharpness * _least_squares(inputs, norms.clamp_min(1e-6).log(), RIDGE)
    # The same vector added to all rows changes no routing weight.
    return Experts(neurons, router - router.mean(0), down[:, neurons].permute(1, 0, 2))


def _clusters(covariance: torch.Tensor, n_clusters: int) -> torch.Tensor:
    """Divide variables into clusters of equal size by balanced spherical k-means: (clusters, size) int64, ascending.

    The start is the variable of largest variance, and then each time the one that is least like all before.
    """
    size = len(covariance) // n_clusters
    deviation = covariance.diagonal().clamp_min(1e-30).sqrt()
    first = [int(deviation.argmax())]
    nearest = covariance[first[0]] / deviation
    for _ in range(n_clusters - 1):
        first.append(int((nearest / deviation[first[0]]).argmin()))
        nearest = torch.maximum(nearest, covariance[first[-1]] / deviation * deviation[first[0]] / deviation[first[-1]])
    similarity = covariance[:, first] / deviation[first]
    cluster = torch.full((len(covariance),), -1)
    for _ in range(ROUNDS):
        seats = similarity.repeat_interleave(size, 1)
        assigned = torch.from_numpy(linear_sum_assignment(seats.numpy(), maximize=True)[1]) // size
        if bool((assigned == cluster).all()):
            break
        cluster = assigned
        members = nn.functional.one_hot(cluster, n_clusters).to(covariance)
        sums = covariance @ members
        similarity = sums / (members * sums).sum(0).clamp_min(1e-30).sqrt()
    return torch.argsort(cluster, stable=True).view(n_clusters, size)


def _least_squares(inputs: torch.Tensor, targets: torch.Tensor, ridge: float) -> torch.Tensor:
    """Return the weights (targets, inputs) of a ridge regression without a constant; the ridge is in the scale of each input."""
    gram = (inputs.T @ inputs).double()
    gram += torch.diag(ridge * gram.diagonal() + 1e-12 * gram.diagonal().mean())
    weights: torch.Tensor = torch.linalg.solve(gram, (inputs.T @ targets).double())
    return weights.T.float()


def control(dense: Any, n_experts: int) -> list[Experts]:
    """Split all FFNs into consecutive neurons, with a router of zeros: exact if all experts are chosen."""
    neurons = torch.arange(dense.config.intermediate_size).view(n_experts, -1)
    router = torch.zeros(n_experts, dense.config.hidden_size)
    downs = [layer.mlp.down_proj.weight.detach() for layer in dense.model.layers]
    return [Experts(neurons, router, down[:, neurons].permute(1, 0, 2)) for down in downs]


def known_answer(
    experts: Sequence[Experts], inputs: Sequence[torch.Tensor], n_copied: int, n_unused: int
) -> list[Experts]:
    """Add experts of which one knows whether they are needed.

    The first experts are copied: original and copy have the same row of the router and half of the down projection each. After
    them come experts that no token is sent to: their logits are below -1 for every token, all others near 0.

    Parameters
    ----------
    experts : sequence of Experts
        One for each FFN; in the mixture, all of them and the copies must be chosen.
    inputs : sequence of (tokens, inputs) tensor
        What every FFN reads, see :func:`ffn_inputs`.
    n_copied, n_unused : int

    Raises
    ------
    ValueError
        No direction has all tokens on one side.
    """
    found = []
    for number, (part, states) in enumerate(zip(experts, inputs, strict=True)):
        constant = _least_squares(states, torch.ones(len(states), 1), RIDGE)
        if float((states @ constant.T).min()) <= 0.1:
            raise ValueError(f"no direction has all tokens of FFN {number} on one side; choose another architecture")
        router = torch.cat([part.router, part.router[:n_copied], -10 * constant.expand(n_unused, -1)])
        # The neurons of an unused expert are those of an expert that is needed.
        neurons = torch.cat([part.neurons, part.neurons[:n_copied], part.neurons[-n_unused:]])
        down = torch.cat([part.down, part.down[:n_copied] / 2, part.down[-n_unused:]])
        down[:n_copied] /= 2
        found.append(Experts(neurons, router, down))
    return found


@torch.no_grad()
def mixtral(dense: Any, experts: Sequence[Experts], top_k: int) -> transformers.MixtralForCausalLM:
    """Make a Mixtral of a dense Llama and the experts of its FFNs.

    Parameters
    ----------
    dense : LlamaForCausalLM
        Without biases.
    experts : sequence of Experts
        One for each FFN.
    top_k : int
        Number of experts that every token gets.

    Raises
    ------
    ValueError
        The dense model has biases, which Mixtral has not.
    """
    told = dense.config.to_dict()
    if told["attention_bias"] or told["mlp_bias"]:
        raise ValueError("Mixtral has no biases; expected a Llama without attention_bias and mlp_bias")
    shared = transformers.MixtralConfig().to_dict().keys() & told.keys() - {"model_type", "architectures"}
    n_experts, width = experts[0].neurons.shape
    config = transformers.MixtralConfig(
        **{name: told[name] for name in shared if not name.startswith("_")}
        | {"intermediate_size": width, "num_local_experts": n_experts, "num_experts_per_tok": top_k}
    )
    model: Any = transformers.MixtralForCausalLM(config).eval()
    state = {name: value for name, value in dense.state_dict().items() if ".mlp." not in name}
    missing = model.load_state_dict(state, strict=False).missing_keys
    if any(".mlp." not in name for name in missing):
        raise ValueError(f"the dense model lacks {', '.join(missing)}; expected a LlamaForCausalLM")
    for before, after, part in zip(dense.model.layers, model.model.layers, experts, strict=True):
        ffn, block = before.mlp, after.mlp
        gate, up = ffn.gate_proj.weight, ffn.up_proj.weight
        block.gate.weight.copy_(part.router)
        block.experts.gate_up_proj.copy_(torch.cat([gate[part.neurons], up[part.neurons]], 1))
        block.experts.down_proj.copy_(top_k * part.down)
    return model


def description(shape: Shape) -> dict[str, Any]:
    """Return what a protocol says of a mixture."""
    return {"architecture": "Mixtral", **asdict(shape), "ridges": [RIDGE, DOWN_RIDGE], "rounds": ROUNDS}
