"""The stream block by block is the stream of whole passes, for every family."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import nn

from llmrank.calibration.blockwise import BlockStream, PassStream, Stream, open_stream
from llmrank.calibration.forward import TokenMasks, first_output
from llmrank.calibration.recording import Recording, recording
from llmrank.calibration.statistics import collect
from llmrank.calibration.text import TokenSequences, tokenise
from llmrank.models import FAMILIES, Family, find_ffns
from tests.llmrank.tiny_models import family_model, features, mlp, text, tiny_llama, token_ids, tokenizer


class Taken:
    """Every batch that passed, padding left out, and what the stream lacked behind it."""

    def __init__(self) -> None:
        self.batches: list[torch.Tensor] = []
        self.lacks: list[torch.Tensor | None] = []

    def add(self, values: torch.Tensor, mask: torch.Tensor | None) -> None:
        self.batches.append(values.detach() if mask is None else values.detach()[mask])

    def end_batch(self, lack: torch.Tensor | None) -> None:
        self.lacks.append(lack)


def whole_passes(model: Any, ffns: Any, sequences: TokenSequences, batch_size: int) -> PassStream:
    batches = list(sequences.batches(batch_size))
    return PassStream(model, ffns, batches, len(batches))


def taken(model: nn.Module, stream: Stream) -> list[Taken]:
    """What every output map reads while those before it return the half of what they should."""
    found = []
    with ExitStack() as halved:
        for ffn in find_ffns(model):
            reader, module = Taken(), ffn.stages[-1][0].module
            stream.feed(ffn, module, reader)
            found.append(reader)
            halved.callback(module.register_forward_hook(lambda _m, _i, output: output / 2).remove)
    return found


def read(model: nn.Module, stream: Stream) -> list[torch.Tensor]:
    return [
        torch.cat([batch.reshape(-1, batch.shape[-1]) for batch in reader.batches]) for reader in taken(model, stream)
    ]


def recorded(model: nn.Module, sequences: TokenSequences, batch_size: int = 2) -> Recording:
    ffns = find_ffns(model)
    with recording(model, ffns) as record:
        collect(model, ffns, sequences, batch_size)
    return record


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_both_streams_carry_the_same(family: Family) -> None:
    model = family_model(family)
    ffns, sequences = find_ffns(model), tokenise(token_ids(5, 20), None, 5, 20)
    stream = open_stream(model, ffns, sequences, 2, recorded(model, sequences))
    # An encoder and a decoder are two stacks, and the decoder reads what the encoder has become.
    assert isinstance(stream, PassStream if family.model_type == "t5" else BlockStream)
    expected = read(model, whole_passes(model, ffns, sequences, 2))
    for found, wanted in zip(read(model, stream), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


# They normalise what the FFN returns, or the stream once it has joined; T5 has two stacks.
NOT_ADDED = {"BERT", "RoBERTa", "Gemma 2", "Gemma 3 (text)", "OLMo 2", "T5", "T5 v1.1, Flan-T5"}
# Some of their blocks do: those with full attention, and those that attend to an image, whose FFN has a gate behind it.
ADDED_BY_SOME = {"OLMo Hybrid", "Llama 3.2 Vision (text)"}


def behind_blocks(model: nn.Module, record: Recording, ids: torch.Tensor, halved: int) -> list[torch.Tensor]:
    """Hidden states behind every block while the first so many output maps return the half of what they should."""
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


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_what_the_stream_lacks_is_what_it_was_less_what_it_is(family: Family) -> None:
    model, ids = family_model(family), token_ids(5, 20)
    ffns, sequences = find_ffns(model), tokenise(ids, None, 5, 20)
    record = recorded(model, sequences)
    found = taken(model, open_stream(model, ffns, sequences, 2, record, follow=True))
    follows = {lack is not None for reader in found for lack in reader.lacks}
    assert follows == ({True, False} if family.name in ADDED_BY_SOME else {family.name not in NOT_ADDED})
    if follows == {True}:
        whole = behind_blocks(model, record, ids, 0)
        for position, reader in enumerate(found):
            now = behind_blocks(model, record, ids, position)
            lacks = torch.cat([lack for lack in reader.lacks if lack is not None])
            torch.testing.assert_close(lacks, whole[position] - now[position], rtol=1e-4, atol=1e-4)


# Norms behind the FFN, an FFN that is lines of its block (OPT, the encoders), and one that adds the stream by itself (BLOOM).
NOT_BY_FFN = {"Gemma 2", "Gemma 3 (text)", "OLMo 2", "OPT", "BLOOM", "BERT", "RoBERTa"}


@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize("family", [one for one in FAMILIES if one.model_type != "t5"], ids=lambda family: family.name)
def test_a_block_that_adds_what_its_ffn_returns_is_gone_past_by_that_alone(family: Family, follow: bool) -> None:
    model, sequences, batches = family_model(family), tokenise(token_ids(5, 20), None, 5, 20), 3
    first, second, *_ = find_ffns(model)
    stream = open_stream(model, [first, second], sequences, 2, recorded(model, sequences), follow=follow)
    assert isinstance(stream, BlockStream)
    calls: list[int] = []
    with ExitStack() as hooks:
        stream.feed(first, first.stages[-1][0].module, Taken())
        block = recorded(model, sequences).blocks[0]
        hooks.callback(block.register_forward_pre_hook(lambda _block, _args: calls.append(1)).remove)
        stream.feed(second, second.stages[-1][0].module, Taken())
    assert len(calls) == (batches if family.name in NOT_BY_FFN else 0)


def test_half_precision_goes_past_whole_blocks() -> None:
    """What is taken away from the stream and added again would be rounded twice."""
    model = tiny_llama().to(torch.bfloat16)
    sequences = tokenise(token_ids(5, 20), None, 5, 20)
    expected = read(model, whole_passes(model, find_ffns(model), sequences, 2))
    stream = open_stream(model, find_ffns(model), sequences, 2, recorded(model, sequences))
    for found, wanted in zip(read(model, stream), expected, strict=True):
        assert torch.equal(found, wanted)


def test_of_two_ffns_side_by_side_both_are_looked_at() -> None:
    class Pair(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.one, self.other = mlp(6, 12, 6, seed=seed), mlp(6, 9, 6, seed=seed + 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.one(x) + self.other(x)

    model = InARow(Pair(0), Pair(2))
    assert len(find_ffns(model)) == 4
    sequences = tokenise(features(600, 6), None, 1, 2)
    stream = open_stream(model, find_ffns(model), sequences, 1, recorded(model, sequences, 1), follow=True)
    assert isinstance(stream, BlockStream)
    expected = read(model, whole_passes(model, find_ffns(model), sequences, 1))
    for found, wanted in zip(read(model, stream), expected, strict=True):
        torch.testing.assert_close(found, wanted)


class Given(nn.Module):
    """An FFN that is given the stream itself beside what it reads, and changes nothing of it."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.up, _, self.down = mlp(6, 12, 6, seed=seed)

    def forward(self, x: torch.Tensor, beside: Any) -> torch.Tensor:
        stream = beside[0] if isinstance(beside, tuple) else beside
        out: torch.Tensor = self.down(torch.relu(self.up(x) * stream.mean()))
        return out


class Giving(nn.Module):
    """A block that hands its FFN the stream: as what it reads (bare), beside it, or beside it in a tuple."""

    def __init__(self, seed: int, way: str) -> None:
        super().__init__()
        self.mlp, self.way = Given(seed), way

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        between = 0.5 * x + 1.0
        read = x if self.way == "bare" else torch.tanh(between)
        given = self.mlp(read.reshape(-1, 6), beside=(x,) if self.way == "in a tuple" else x)
        out: torch.Tensor = between + given.reshape(x.shape)
        return out


class Aliasing(nn.Module):
    """A block that returns what it was given in another order, or something that it keeps."""

    def __init__(self, seed: int, way: str) -> None:
        super().__init__()
        self.mlp, self.way = mlp(6, 12, 6, seed=seed), way
        self.latents = nn.Parameter(torch.ones(2, 6)) if way == "a parameter" and seed == 0 else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + self.mlp(torch.tanh(x))
        if self.way == "another order":
            return x.contiguous().as_strided(x.shape, (1, len(x)))
        return out if self.latents is None else self.latents


class InARow(nn.Module):
    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize("way", ["bare", "beside", "in a tuple"])
def test_what_an_ffn_was_given_is_there_when_the_states_have_moved_on(way: str, follow: bool) -> None:
    """New states lie where the old ones lay; what an FFN is to be given again must not have been written over."""
    check_against_passes(InARow(*(Giving(k, way) for k in range(3))), follow=follow)


@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize("way", ["another order", "a parameter"])
def test_what_a_block_returns_stays_its_own(way: str, follow: bool) -> None:
    model = InARow(*(Aliasing(k, way) for k in range(3)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check_against_passes(model, follow=follow)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def check_against_passes(model: nn.Module, *, follow: bool) -> None:
    sequences = tokenise(features(600, 6), None, 1, 2)
    expected = read(model, whole_passes(model, find_ffns(model), sequences, 1))
    stream = open_stream(model, find_ffns(model), sequences, 1, recorded(model, sequences, 1), follow=follow)
    assert isinstance(stream, BlockStream)
    for found, wanted in zip(read(model, stream), expected, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("follow", [False, True])
def test_a_record_that_is_kept_serves_another_stream(follow: bool) -> None:
    model, sequences = tiny_llama(), tokenise(token_ids(5, 20), None, 5, 20)
    record = recorded(model, sequences)
    first = [states.clone() for states in record.first_states]
    found = read(model, open_stream(model, find_ffns(model), sequences, 2, record, follow=follow))
    assert all(torch.equal(one, other) for one, other in zip(record.first_states, first, strict=True))
    again = read(model, open_stream(model, find_ffns(model), sequences, 2, record, follow=follow))
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))


def test_states_of_another_dtype_than_the_first_stay_as_they_are() -> None:
    class Widens(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.mlp = mlp(6, 12, 6, seed=seed).double()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = x + self.mlp(torch.tanh(x.double()))
            return out

    class Narrows(InARow):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.float())

    model = Narrows(Widens(0), Widens(1), Widens(2))
    sequences = tokenise(features(600, 6), None, 1, 2)
    expected = read(model, whole_passes(model, find_ffns(model), sequences, 1))
    stream = open_stream(model, find_ffns(model), sequences, 1, recorded(model, sequences, 1), follow=True)
    assert isinstance(stream, BlockStream)
    for found, wanted in zip(read(model, stream), expected, strict=True):
        # Kept in float32 they would differ by 1e-7.
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_padding_is_told_batch_by_batch() -> None:
    model = tiny_llama()
    texts = [text(5, 1), text(17, 2), text(11, 3)]
    sequences = tokenise(texts, tokenizer(), 3, 20)
    assert not bool(sequences.mask.all())
    stream = open_stream(model, find_ffns(model), sequences, 2, recorded(model, sequences))
    found = read(model, stream)
    expected = read(model, whole_passes(model, find_ffns(model), sequences, 2))
    assert len(found[0]) == sequences.n_tokens
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


class BetweenBlocks(nn.Module):
    """Something happens to the hidden states between the blocks: they cannot be run by themselves."""

    def __init__(self, *, between: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([mlp(6, 12, 6, seed=k) for k in range(3)])
        self.between = between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x) + (1.0 if self.between else 0.0) if self.between else block(x)
        return x


@pytest.mark.parametrize("between", [False, True])
def test_blocks_are_run_by_themselves_only_where_they_follow_one_another(between: bool) -> None:
    model = BetweenBlocks(between=between)
    sequences = tokenise(features(600, 6), None, 1, 2)
    stream = open_stream(model, find_ffns(model), sequences, 1, recorded(model, sequences, 1))
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
    # Two rounds a pass look like two batches, which the number of batches gives away.
    stream = open_stream(model, find_ffns(model), tokenise(features(300, 6), None, 1, 2), 1, record)
    assert isinstance(stream, PassStream)
    reader, ffn = Taken(), find_ffns(model)[0]
    stream.feed(ffn, ffn.stages[-1][0].module, reader)
    # 300 rows of features are two batches, and every one passes the block twice.
    assert [len(batch) for batch in reader.batches] == [256, 256, 44, 44]
    assert reader.lacks == [None, None]


def test_a_block_that_writes_into_its_input_is_not_run_by_itself() -> None:
    """The hidden states kept in front of it would be those behind it."""

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
    assert isinstance(open_stream(model, find_ffns(model), sequences, 1, recorded(model, sequences, 1)), PassStream)


def test_a_record_that_is_not_kept_gives_its_states_away() -> None:
    model, sequences = tiny_llama(), tokenise(token_ids(5, 20), None, 5, 20)
    record = recorded(model, sequences)
    open_stream(model, find_ffns(model), sequences, 2, record)
    assert len(record.first_states) == 3
    record.kept = False
    open_stream(model, find_ffns(model), sequences, 2, record)
    assert record.first_states == []


def test_a_map_is_not_fed_twice() -> None:
    model, sequences = tiny_llama(), tokenise(token_ids(5, 20), None, 5, 20)
    stream = open_stream(model, find_ffns(model), sequences, 2, recorded(model, sequences))
    ffn = find_ffns(model)[0]
    stream.feed(ffn, ffn.stages[-1][0].module, Taken())
    with pytest.raises(RuntimeError, match="was fed already"):
        stream.feed(ffn, ffn.stages[-1][0].module, Taken())


def test_records_of_blocks_out_of_order_are_broken() -> None:
    record = Recording([nn.Identity(), nn.Identity()])
    hidden: Any = torch.ones(1, 2)
    record.record_call(1, (hidden,), {})
    assert not record.unbroken
    assert record.first_states == []


def test_masks_become_those_of_the_next_batch() -> None:
    masks, mask = TokenMasks(), torch.tensor([[True, False]])
    masks.replace(TokenMasks(mask))
    assert masks.input is mask
    assert masks.decoder is None
