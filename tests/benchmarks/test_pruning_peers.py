"""Other pruning libraries choose as their documentation says, and leave the model as it was."""

from __future__ import annotations

import pytest
import torch

from benchmarks import pruning_peers
from llmrank.models import find_ffns
from llmrank.text import tokenise
from tests.llmrank.tiny_models import Snapshot, tiny_llama, token_ids


@pytest.mark.parametrize("peer", pruning_peers.PEERS, ids=lambda peer: f"{peer.name}, {peer.budget}")
def test_masks_remove_the_share_and_the_model_stays(peer: pruning_peers.Peer) -> None:
    pytest.importorskip(peer.module)
    model = tiny_llama()
    before, ffns = Snapshot(model), find_ffns(model)
    masks = peer.masks(model, ffns, tokenise(token_ids(3, 24), None, 3, 24), 0.25)
    before.assert_restored()
    assert masks.size - masks.kept == 20
    assert masks.is_uniform or peer.budget == "global"


def test_torch_pruning_s_magnitude_is_that_of_the_whole_neuron() -> None:
    pytest.importorskip("torch_pruning")
    model = tiny_llama()
    ffns = find_ffns(model)
    peer = next(p for p in pruning_peers.PEERS if (p.name, p.budget) == ("Torch-Pruning, magnitude", "local"))
    masks = peer.masks(model, ffns, tokenise(token_ids(3, 24), None, 3, 24), 0.25)
    for ffn in ffns:
        (gate, up), (down,) = ffn.stages
        # It averages what the maps say: sums of squares of the rows of gate and up, and of the columns of down.
        size = gate.weight.square().sum(1) + up.weight.square().sum(1) + down.weight.square().sum(0)
        assert torch.equal(masks[ffn.name], size >= size.sort().values[10])
