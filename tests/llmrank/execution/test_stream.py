"""The block-by-block stream equals the stream of full forward passes, for every family."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import nn

from llmrank.calibration.collect import collect_statistics
from llmrank.execution import Execution
from llmrank.execution.block_stream import BlockStream, open_stream
from llmrank.execution.hooks import TokenMasks
from llmrank.execution.pass_stream import PassStream, Stream
from llmrank.execution.recording import Recording, recording
from llmrank.models import FFNs, find_ffns
from llmrank.models.finding.attention import find_attentions
from llmrank.models.forward import first_output, run_sequences
from llmrank.text import TokenSequences, tokenise
from tests.llmrank.families import FAMILIES, Family
from tests.llmrank.tiny_models import (
    every_family,
    family_model,
    features,
    mlp,
    text,
    tiny_llama,
    token_ids,
    tokenizer,
)
from tests.tables import table


class InputKeeper:
    """A reader that keeps every batch without padding, and the lack of the stream behind it.

    If the map has not run, what it should return is the lack and what it returns.
    """

    def __init__(self, module: nn.Module | None = None) -> None:
        self.module = module
        self.batches: list[torch.Tensor] = []
        self.lacks: list[torch.Tensor | None] = []

    def add(self, values: torch.Tensor, mask: torch.Tensor | None) -> None:
        self.batches.append(values.detach() if mask is None else values.detach()[mask])

    def end_batch(self, lack: torch.Tensor | None, *, has_run: bool = True) -> None:
        if not has_run:
            assert lack is not None
            assert self.module is not None
            with torch.no_grad():
                lack = lack - type(self.module).forward(self.module, self.batches[-1]).reshape(lack.shape)
        self.lacks.append(lack)


def whole_passes(model: Any, ffns: Any, sequences: TokenSequences, batch_size: int) -> PassStream:
    batches = list(sequences.batches(batch_size))
    return PassStream(model, ffns, batches, len(batches))


def feed_halved(model: nn.Module, stream: Stream) -> list[InputKeeper]:
    """Return the inputs of every output map while the output maps before it return half of their output."""
    found = []
    with ExitStack() as halved:
        for ffn in find_ffns(model):
            module = ffn.stages[-1][0].module
            reader = InputKeeper(module)
            stream.feed(ffn, {module: reader})
            found.append(reader)
            halved.callback(module.register_forward_hook(lambda _m, _i, output: output / 2).remove)
    return found


def read(model: nn.Module, stream: Stream) -> list[torch.Tensor]:
    return [
        torch.cat([batch.reshape(-1, batch.shape[-1]) for batch in reader.batches])
        for reader in feed_halved(model, stream)
    ]


def recorded(model: nn.Module, sequences: TokenSequences, batch_size: int = 2, memory: int = 0) -> Recording:
    ffns = find_ffns(model)
    with recording(model, ffns, memory) as record:
        collect_statistics(model, ffns, sequences, Execution(batch_size))
    return record


@every_family
def test_both_streams_carry_the_same(family: Family) -> None:
    model = family_model(family)
    ffns, sequences = find_ffns(model), tokenise(token_ids(5, 20), None, 5, 20)
    stream = open_stream(model, ffns, sequences, recorded(model, sequences), Execution(2))
    # An encoder and a decoder are two stacks, and the decoder reads the output of the changed encoder.
    assert isinstance(stream, PassStream if family.model_type == "t5" else BlockStream)
    expected = read(model, whole_passes(model, ffns, sequences, 2))
    for found, wanted in zip(read(model, stream), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


# These normalise the output of the FFN, or the stream after the addition; T5 has two stacks.
NOT_ADDED = {"BERT", "RoBERTa", "Gemma 2", "Gemma 3 (text)", "OLMo 2", "T5", "T5 v1.1, Flan-T5"}
# These add the output of the attention behind that of the FFN.
NOT_ADDED_LAST = {"GPT-NeoX, Pythia", "Phi", "Falcon"}
# Some of their blocks do so: those with full attention, and those that attend to an image, with a gate behind the FFN.
ADDED_BY_SOME = {"OLMo Hybrid", "Llama 3.2 Vision (text)"}


def behind_blocks(model: nn.Module, record: Recording, ids: torch.Tensor, halved: int) -> list[torch.Tensor]:
    """Return the hidden states behind every block while the first `halved` output maps return half of their output."""
    states: list[torch.Tensor] = []
    with ExitStack() as hooks, torch.no_grad():
        for ffn in find_ffns(model)[:halved]:
            module = ffn.stages[-1][0].module
            hooks.callback(module.register_forward_hook(lambda _m, _i, output: output / 2).remove)
        for block in record.blocks:
            hooks.callback(
                block.register_forward_hook(lambda _b, _i, output: states.append(first_output(output))).remove
            )
        model.eval()
        model(input_ids=ids, use_cache=False)
    return states


@every_family
def test_the_lack_is_the_dense_stream_minus_the_pruned_one(family: Family) -> None:
    model, ids = family_model(family), token_ids(5, 20)
    ffns, sequences = find_ffns(model), tokenise(ids, None, 5, 20)
    record = recorded(model, sequences)
    found = feed_halved(model, open_stream(model, ffns, sequences, record, Execution(2), follow=True))
    follows = {lack is not None for reader in found for lack in reader.lacks}
    assert follows == ({True, False} if family.name in ADDED_BY_SOME else {family.name not in NOT_ADDED})
    if follows == {True}:
        whole = behind_blocks(model, record, ids, 0)
        for position, reader in enumerate(found):
            now = behind_blocks(model, record, ids, position)
            lacks = torch.cat([lack for lack in reader.lacks if lack is not None])
            torch.testing.assert_close(lacks, whole[position] - now[position], rtol=1e-4, atol=1e-4)


@table("follow", [False, True])
@every_family
def test_memory_saves_passes(family: Family, follow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = family_model(family), token_ids(5, 20)
    ffns, sequences = find_ffns(model), tokenise(ids, None, 5, 20)
    found, n_calls = [], []
    for memory in (0, 1 << 30):
        monkeypatch.setattr("llmrank.execution.block_stream.spare_memory", lambda *_, memory=memory: memory)
        record = recorded(model, sequences, memory=memory)
        stream = open_stream(model, ffns, sequences, record, Execution(2), follow=follow)
        calls: list[int] = []
        with ExitStack() as hooks:
            for block in record.blocks:
                hooks.callback(block.register_forward_hook(lambda *_, calls=calls: calls.append(1)).remove)
            readers = feed_halved(model, stream)
        found.append([value for reader in readers for value in (*reader.batches, *reader.lacks)])
        n_calls.append(len(calls))
    for one, other in zip(*found, strict=True):
        assert one is other is None or torch.equal(one, other)
    if isinstance(stream, PassStream):
        assert n_calls[0] == n_calls[1]
        return
    # There are three batches of at most two sequences. The dense model need not run again, and neither does a block that adds the
    # output of its FFN last. The last block is not left. The trials take one batch.
    dense = 3 * len(record.blocks) if follow else 0
    again = 0 if family.name in NOT_ADDED | NOT_ADDED_LAST else 3 * (len(ffns) - 1)
    trials = (0 if follow else 2 * len(ffns)) + (0 if family.name in NOT_ADDED else len(ffns))
    saved = n_calls[0] - n_calls[1] - dense
    assert saved == again - trials or (family.name in ADDED_BY_SOME and -trials < saved < again)


@table(("fed", "memory"), [(1, 0), (2, 0), (1, 1 << 30), (2, 1 << 30)])
@every_family
def test_a_finished_stream_holds_the_states_behind_the_last_block(
    family: Family, fed: int, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmrank.execution.block_stream.spare_memory", lambda *_: memory)
    model, ids = family_model(family), token_ids(7, 20)
    ffns, fit, held_out = find_ffns(model), *(tokenise(part, None, len(part), 20) for part in (ids[:4], ids[4:]))
    record = recorded(model, TokenSequences.of(ids, torch.ones_like(ids, dtype=torch.bool), ""))
    stream = open_stream(model, ffns, fit, record, Execution(2), held_out, follow=True)
    with ExitStack() as halved:
        for ffn in [*ffns][:fed]:
            module = ffn.stages[-1][0].module
            stream.feed(ffn, {module: InputKeeper(module)})
            halved.callback(module.register_forward_hook(lambda _m, _i, output: output / 2).remove)
        stream.finish()
        with recording(model, ffns, 1 << 30) as expected:
            run_sequences(model, ffns, Execution(2).batches(held_out))
    if isinstance(stream, PassStream):
        assert not stream.held_out_states
        return
    assert len(stream.held_out_states) == 2
    for found, wanted in zip(stream.held_out_states, expected.last_outputs, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spare", [-1, 0], ids=["too little memory", "enough"])
def test_outputs_are_kept_if_memory_suffices(spare: int) -> None:
    model, sequences = tiny_llama(), tokenise(token_ids(5, 20), None, 5, 20)
    n_blocks = len(recorded(model, sequences).blocks)
    needed = n_blocks * 5 * 20 * model.config.hidden_size * 4
    record = recorded(model, sequences, memory=needed + spare)
    assert record.bytes_kept == (0 if spare else needed)
    record.keeps_states = False
    taken = [record.take_outputs(position) for position in range(n_blocks)]
    assert [len(outputs) for outputs in taken] == [0 if spare else 3] * n_blocks
    assert not record.take_outputs(0)


def test_a_second_repair_uses_what_the_first_has_computed() -> None:
    model, sequences = tiny_llama(), tokenise(token_ids(5, 20), None, 5, 20)
    record, ffns, calls, lacks = recorded(model, sequences), find_ffns(model), [], []
    record.memory = 1 << 30
    for block in record.blocks:
        block.register_forward_hook(lambda *_: calls.append(1))
    n_calls = []
    for _ in range(2):
        found = feed_halved(model, open_stream(model, ffns, sequences, record, Execution(2), follow=True))
        lacks.append(torch.cat([lack for reader in found for lack in reader.lacks if lack is not None]))
        n_calls.append(len(calls))
        calls.clear()
    assert torch.equal(*lacks)
    assert n_calls[0] - n_calls[1] == 3 * len(record.blocks)


@table("follow", [False, True])
@pytest.mark.parametrize("family", [each for each in FAMILIES if each.name in {"Llama, SmolLM2", "GPT-NeoX, Pythia"}])
def test_memory_changes_no_number_in_half_precision(
    family: Family, follow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, sequences = family_model(family).to(torch.bfloat16), tokenise(token_ids(5, 20), None, 5, 20)
    expected, ffns = read(model, whole_passes(model, find_ffns(model), sequences, 2)), find_ffns(model)
    record, calls, lacks = recorded(model, sequences), [], []
    record.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    n_calls = []
    for memory in (0, 1 << 30):
        monkeypatch.setattr("llmrank.execution.block_stream.spare_memory", lambda *_, memory=memory: memory)
        calls.clear()
        found = feed_halved(model, open_stream(model, ffns, sequences, record, Execution(2), follow=follow))
        for reader, wanted in zip(found, expected, strict=True):
            assert torch.equal(torch.cat([each.reshape(-1, each.shape[-1]) for each in reader.batches]), wanted)
        lacks.append([lack for reader in found for lack in reader.lacks])
        n_calls.append(len(calls))
    for one, other in zip(*lacks, strict=True):
        assert one is other is None or torch.equal(one, other)
    # Three batches; trials on the first one: its output if that is not known, a tensor added, and without the last map.
    dense, trial = (3, 1) if follow else (0, 0)
    kept = 3 if family.name == "Llama, SmolLM2" else 6
    assert n_calls == [dense + trial + 6, dense + (2 if follow else 3) + kept]


def test_in_half_precision_a_stream_that_nothing_has_changed_lacks_nothing() -> None:
    """Its rounding errors are no lack, though values in the thousands have large ones."""
    model, sequences = family_model(FAMILIES[0]).to(torch.bfloat16), tokenise(token_ids(5, 20), None, 5, 20)
    with torch.no_grad():
        model.get_input_embeddings().weight[int(sequences.ids[0, 0])] *= 5000.0
    ffns = find_ffns(model)
    stream = open_stream(model, ffns, sequences, recorded(model, sequences), Execution(2), follow=True)
    reader, first = InputKeeper(), next(iter(ffns))
    stream.feed(first, {first.output_module: reader})
    assert [lack is not None and not bool(lack.any()) for lack in reader.lacks] == [True] * 3


def test_a_large_value_does_not_hide_that_a_block_reads_the_attention() -> None:
    """What the FFN behind an attention reads is not added to the stream alone."""
    model, sequences = family_model(FAMILIES[0]).to(torch.bfloat16), tokenise(token_ids(5, 20), None, 5, 20)
    with torch.no_grad():
        model.get_input_embeddings().weight[int(sequences.ids[0, 0])] *= 5000.0
    attentions = FFNs(tuple(find_attentions(model, find_ffns(model)).values()))
    stream = open_stream(model, attentions, sequences, recorded(model, sequences), Execution(2), follow=True)
    reader, first = InputKeeper(), next(iter(attentions))
    stream.feed(first, {first.output_module: reader})
    assert reader.lacks == [None] * 3


def test_both_of_two_parallel_ffns_are_fed() -> None:
    class Pair(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.one, self.other = mlp(6, 12, 6, seed=seed), mlp(6, 9, 6, seed=seed + 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.one(x) + self.other(x)

    model = BlockRow(Pair(0), Pair(2))
    assert len(find_ffns(model)) == 4
    sequences = tokenise(features(600, 6), None, 1, 2)
    stream = open_stream(model, find_ffns(model), sequences, recorded(model, sequences, 1), follow=True)
    assert isinstance(stream, BlockStream)
    expected = read(model, whole_passes(model, find_ffns(model), sequences, 1))
    for found, wanted in zip(read(model, stream), expected, strict=True):
        torch.testing.assert_close(found, wanted)


class Aliasing(nn.Module):
    """A block that returns its input in another order, or a tensor that it keeps."""

    def __init__(self, seed: int, way: str) -> None:
        super().__init__()
        self.mlp, self.way = mlp(6, 12, 6, seed=seed), way
        self.latents = nn.Parameter(torch.ones(2, 6)) if way == "a parameter" and seed == 0 else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + self.mlp(torch.tanh(x))
        if self.way == "another order":
            return x.contiguous().as_strided(x.shape, (1, len(x)))
        return out if self.latents is None else self.latents


class BlockRow(nn.Module):
    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize("way", ["another order", "a parameter"])
def test_tensors_that_a_block_keeps_are_not_overwritten(way: str, follow: bool) -> None:
    model = BlockRow(*(Aliasing(k, way) for k in range(3)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check_against_passes(model, follow=follow)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def check_against_passes(model: nn.Module, *, follow: bool) -> None:
    sequences = tokenise(features(600, 6), None, 1, 2)
    expected = read(model, whole_passes(model, find_ffns(model), sequences, 1))
    stream = open_stream(model, find_ffns(model), sequences, recorded(model, sequences, 1), follow=follow)
    assert isinstance(stream, BlockStream)
    for found, wanted in zip(read(model, stream), expected, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("follow", [False, True])
def test_a_kept_record_serves_another_stream(follow: bool) -> None:
    model, sequences = tiny_llama(), tokenise(token_ids(5, 20), None, 5, 20)
    record = recorded(model, sequences)
    first = [states.clone() for states in record.first_states]
    found = read(model, open_stream(model, find_ffns(model), sequences, record, Execution(2), follow=follow))
    assert all(torch.equal(one, other) for one, other in zip(record.first_states, first, strict=True))
    again = read(model, open_stream(model, find_ffns(model), sequences, record, Execution(2), follow=follow))
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))


def test_states_keep_a_dtype_that_differs_from_the_first() -> None:
    class Widens(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.mlp = mlp(6, 12, 6, seed=seed).double()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = x + self.mlp(torch.tanh(x.double()))
            return out

    class Narrows(BlockRow):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.float())

    model = Narrows(Widens(0), Widens(1), Widens(2))
    sequences = tokenise(features(600, 6), None, 1, 2)
    expected = read(model, whole_passes(model, find_ffns(model), sequences, 1))
    stream = open_stream(model, find_ffns(model), sequences, recorded(model, sequences, 1), follow=True)
    assert isinstance(stream, BlockStream)
    for found, wanted in zip(read(model, stream), expected, strict=True):
        # If they were kept in float32, they would differ by 1e-7.
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_padding_masks_follow_the_batches() -> None:
    model = tiny_llama()
    texts = [text(5, 1), text(17, 2), text(11, 3)]
    sequences = tokenise(texts, tokenizer(), 3, 20)
    assert not bool(sequences.mask.all())
    stream = open_stream(model, find_ffns(model), sequences, recorded(model, sequences), Execution(2))
    found = read(model, stream)
    expected = read(model, whole_passes(model, find_ffns(model), sequences, 2))
    assert len(found[0]) == sequences.n_tokens
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


class BetweenBlocks(nn.Module):
    """A model that changes the hidden states between the blocks, so that blocks cannot run by themselves."""

    def __init__(self, *, between: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([mlp(6, 12, 6, seed=k) for k in range(3)])
        self.between = between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x) + (1.0 if self.between else 0.0) if self.between else block(x)
        return x


@pytest.mark.parametrize("between", [False, True])
def test_blocks_run_by_themselves_only_if_they_follow_one_another(between: bool) -> None:
    model = BetweenBlocks(between=between)
    sequences = tokenise(features(600, 6), None, 1, 2)
    stream = open_stream(model, find_ffns(model), sequences, recorded(model, sequences, 1))
    assert isinstance(stream, PassStream if between else BlockStream)
    expected = read(model, whole_passes(model, find_ffns(model), sequences, 1))
    for found, wanted in zip(read(model, stream), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_a_block_that_is_called_twice_breaks_the_record() -> None:
    class Twice(BetweenBlocks):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(super().forward(x))

    model = Twice(between=False)
    record = recorded(model, tokenise(features(300, 6), None, 1, 2))
    # Two rounds in a pass look like two batches, but the number of batches shows the difference.
    stream = open_stream(model, find_ffns(model), tokenise(features(300, 6), None, 1, 2), record)
    assert isinstance(stream, PassStream)
    reader, ffn = InputKeeper(), find_ffns(model)[0]
    stream.feed(ffn, {ffn.stages[-1][0].module: reader})
    # 300 rows of features are two batches, and each of them runs the block twice.
    assert [len(batch) for batch in reader.batches] == [256, 256, 44, 44]
    assert reader.lacks == [None, None]


def test_a_block_that_writes_to_its_input_does_not_run_by_itself() -> None:
    """The hidden states kept in front of the block would be those behind it."""

    class Writes(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.mlp = mlp(6, 12, 6, seed=seed)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x += self.mlp(x)
            return x

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Writes(0), Writes(1)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x * 1.0
            for block in self.blocks:
                x = block(x)
            return x

    model = Model()
    sequences = tokenise(features(600, 6), None, 1, 2)
    assert isinstance(open_stream(model, find_ffns(model), sequences, recorded(model, sequences, 1)), PassStream)


def test_a_record_that_is_not_kept_loses_its_states_to_the_stream() -> None:
    model, sequences = tiny_llama(), tokenise(token_ids(5, 20), None, 5, 20)
    record = recorded(model, sequences)
    open_stream(model, find_ffns(model), sequences, record, Execution(2))
    assert len(record.first_states) == 3
    record.keeps_states = False
    open_stream(model, find_ffns(model), sequences, record, Execution(2))
    assert record.first_states == []


def test_feeding_a_map_twice_raises() -> None:
    model, sequences = tiny_llama(), tokenise(token_ids(5, 20), None, 5, 20)
    stream = open_stream(model, find_ffns(model), sequences, recorded(model, sequences), Execution(2))
    ffn = find_ffns(model)[0]
    stream.feed(ffn, {ffn.output_module: InputKeeper(ffn.output_module)})
    with pytest.raises(RuntimeError, match="was fed already"):
        stream.feed(ffn, {ffn.output_module: InputKeeper(ffn.output_module)})


def test_feeding_an_earlier_ffn_after_a_later_one_raises() -> None:
    model, sequences = tiny_llama(), tokenise(token_ids(5, 20), None, 5, 20)
    stream = open_stream(model, find_ffns(model), sequences, recorded(model, sequences), Execution(2))
    first, second = find_ffns(model)
    stream.feed(second, {second.output_module: InputKeeper(second.output_module)})
    with pytest.raises(RuntimeError, match=r"layers\.0\.mlp or a later FFN was fed already"):
        stream.feed(first, {first.output_module: InputKeeper(first.output_module)})


class LeavesValues(nn.Module):
    """A block that adds what the block before left for it in a mapping, as in Gemma 3n, and leaves its own output."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.mlp = mlp(6, 12, 6, seed=seed)

    def forward(self, hidden_states: torch.Tensor, left: dict[str, torch.Tensor]) -> torch.Tensor:
        left["values"] = self.mlp(hidden_states) + left.get("values", 0.0)
        return hidden_states + left["values"]


class Reversible(nn.Module):
    """A block with two streams, of which the hidden states are the second, as in Reformer."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.mlp = mlp(6, 12, 6, seed=seed)

    def forward(self, other: torch.Tensor, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        other = other + hidden_states
        return hidden_states + self.mlp(other), other


class TwoWays(nn.Module):
    def __init__(self, block: type[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block(seed) for seed in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        other, left = x, {}
        for block in self.blocks:
            if isinstance(block, Reversible):
                x, other = block(hidden_states=x, other=other)
            else:
                x = block(x, left=left)
        return x


@pytest.mark.parametrize("block", [LeavesValues, Reversible])
def test_blocks_that_pass_on_more_than_the_hidden_states_do_not_run_by_themselves(block: type[nn.Module]) -> None:
    model = TwoWays(block)
    sequences = tokenise(features(600, 6), None, 1, 2)
    stream = open_stream(model, find_ffns(model), sequences, recorded(model, sequences, 1))
    assert isinstance(stream, PassStream)
    expected = read(model, whole_passes(model, find_ffns(model), sequences, 1))
    for found, wanted in zip(read(model, stream), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_blocks_out_of_order_break_the_record() -> None:
    record = Recording([nn.Identity(), nn.Identity()])
    hidden: Any = torch.ones(1, 2)
    record.record_call(1, (hidden,), {})
    assert not record.unbroken
    assert record.first_states == []


def test_a_block_that_the_last_batch_does_not_reach_breaks_the_record() -> None:
    model, ids = tiny_llama(), token_ids(2, 8)
    ffns = find_ffns(model)
    with recording(model, ffns) as record, torch.no_grad():
        model(input_ids=ids, use_cache=False)
        model.config.num_hidden_layers = 1
        model(input_ids=ids, use_cache=False)
    assert [len(calls) for calls in record.calls] == [2, 1]
    assert not record.unbroken


def test_token_masks_are_replaced_in_place() -> None:
    masks, mask = TokenMasks(), torch.tensor([[True, False]])
    masks.replace(TokenMasks(mask))
    assert masks.input is mask
    assert masks.decoder is None
