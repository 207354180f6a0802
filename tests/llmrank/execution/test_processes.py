"""Several processes that divide a run: the result is that of one process, and none outlives the failure of another."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file

import llmrank
from llmrank.cli import parser
from llmrank.cli.processes import check_processes
from llmrank.errors import CalibrationError, OptionError, ProcessError
from llmrank.execution import Processes, heartbeat, join_processes
from llmrank.pipeline import CalibrationText, stages
from llmrank.pipeline.closeness.repair_validation import Validation
from llmrank.pipeline.pruning_run import PruningRun
from llmrank.pipeline.registry import make_recipe
from llmrank.prune import GlobalPruner, LocalPruner, SensitivityPruner
from llmrank.repair import LeastSquaresRepair
from llmrank.score import AutoScorer, FLAPScorer
from llmrank.text import TokenSequences
from tests.llmrank.commands import run
from tests.llmrank.plain_pipelines import ChainedFFNPipeline, IsolatedFFNPipeline, ResidualFFNPipeline
from tests.llmrank.tiny_mixtures import tiny_mixture
from tests.llmrank.tiny_models import features, mlp, text, tiny_llama, token_ids, tokenizer
from tests.tables import table

TEXT = CalibrationText(token_ids(9, 24), sequence_length=24)
PADDED = CalibrationText([text(n) for n in (9, 24, 5, 17, 24, 12, 20)], sequence_length=24, batch_size=2)
Case = tuple[Callable[[], Any], Any, dict[str, Any]]
WRITTEN = CalibrationText("generated", samples=4, sequence_length=16)
CASES: dict[str, Case] = {
    "generated": (tiny_llama, IsolatedFFNPipeline, {"calibration": WRITTEN}),
    "isolated": (tiny_llama, IsolatedFFNPipeline, {"calibration": TEXT}),
    "padded": (tiny_llama, IsolatedFFNPipeline, {"calibration": PADDED, "scorer": FLAPScorer()}),
    "global": (tiny_llama, ChainedFFNPipeline, {"calibration": TEXT, "pruner": GlobalPruner(0.4)}),
    "sensitive": (
        tiny_llama,
        ResidualFFNPipeline,
        {"calibration": TEXT, "pruner": SensitivityPruner(0.3), "evaluation": token_ids(5, 24, seed=9)},
    ),
    "attention": (tiny_llama, ResidualFFNPipeline, {"calibration": TEXT, "attention": True}),
    "features": (lambda: mlp(6, 32, 4), IsolatedFFNPipeline, {"calibration": features(900, 6)}),
    "repaired": (tiny_llama, IsolatedFFNPipeline, {"calibration": TEXT, "repair": LeastSquaresRepair()}),
    "repaired outputs": (
        tiny_llama,
        IsolatedFFNPipeline,
        {"calibration": PADDED, "repair": LeastSquaresRepair(target="output", damping=0.1)},
    ),
    "chosen anew": (
        tiny_llama,
        ChainedFFNPipeline,
        {"calibration": TEXT, "repair": LeastSquaresRepair(damping=1.0, reselect=True)},
    ),
    "chosen": (
        tiny_llama,
        IsolatedFFNPipeline,
        {"calibration": CalibrationText(text(24 * 11), 8, 24), "scorer": AutoScorer(), "pruner": LocalPruner(0.5)},
    ),
    "mixture": (
        lambda: tiny_mixture("qwen2_moe"),
        IsolatedFFNPipeline,
        {"calibration": TEXT, "repair": LeastSquaresRepair(damping=0.1)},
    ),
    "experts": (
        lambda: tiny_mixture("mixtral"),
        ResidualFFNPipeline,
        {"calibration": TEXT, "repair": LeastSquaresRepair(), "targets": "experts", "pruner": SensitivityPruner(0.25)},
    ),
}


def outcome(case: str) -> dict[str, Any]:
    """Run a pipeline, and return all that the processes must agree on, in plain values and tensors."""
    make, pipeline_class, options = CASES[case]
    model = make()
    text_source = getattr(options["calibration"], "source", None)
    has_text = isinstance(text_source, (str, list)) and options["calibration"] is not WRITTEN
    pipeline = pipeline_class(model, tokenizer() if has_text else None, **{"pruner": LocalPruner(0.3), **options})
    statistics: list[Any] = []
    calibrate = stages.calibrate

    def keep(*arguments: Any) -> Any:
        statistics.append(calibrate(*arguments))
        return statistics[-1]

    # All repairs are kept, so that they are compared.
    with patch.object(Validation, "improves", new=True), patch.object(stages, "calibrate", keep):
        pipeline.run()
    report, selection = pipeline.report, pipeline.plan.selection
    assert report is not None
    return {
        "masks": dict(pipeline.masks),
        "statistics": numbers(statistics),
        "sensitivities": selection.sensitivities,
        "choice": report.choice,
        "repaired": {name: solved.weight for name, solved in selection.repaired.items()},
        "dampings": {name: solved.damping for name, solved in selection.repaired.items()},
        "validation": None if selection.validation is None else vars(selection.validation),
        "perplexity": report.evaluation and [vars(report.evaluation.before), vars(report.evaluation.after)],
        "state": dict(model.state_dict()),
    }


def numbers(value: Any) -> Any:
    """Turn statistics into lists of tensors and numbers; the linear maps of attentions are left out."""
    if isinstance(value, (list, tuple)):
        return [numbers(item) for item in value]
    if type(value).__module__.startswith("llmrank.calibration"):
        return [numbers(item) for name, item in vars(value).items() if name != "attention" or hasattr(item, "layers")]
    return value if isinstance(value, (torch.Tensor, int, float)) else None


def assert_same(found: Any, expected: Any, tolerance: float) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        found, expected = list(found.values()), list(expected.values())
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other, tolerance)
    elif isinstance(expected, torch.Tensor) and expected.is_floating_point():
        largest = float(expected.abs().max()) if expected.numel() else 0.0
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * largest)
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=tolerance)
    else:
        assert found == expected


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def connect(rank: int, count: int, port: int) -> None:
    """Set the variables that a launcher sets."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)


# If the caller has connected the processes, only the way to them differs.
SOME = ("isolated", "padded", "repaired")


def run_cases(rank: int, count: int, port: int, folder: Path) -> None:
    devices: list[int] = []
    if port:
        connect(rank, count, port)
        os.environ["LOCAL_RANK"] = str(rank)
        torch.cuda.device_count = lambda: count
        torch.cuda.device = lambda number: nullcontext(devices.append(number))  # type: ignore[assignment,misc,func-returns-value]
    else:  # the caller has connected the processes
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count)
    torch.save({case: outcome(case) for case in (CASES if port else SOME)}, folder / f"{rank}.pt")
    if port:  # every run has the device of its process, though only the first one connects the processes
        assert devices == [rank] * len(CASES)
    else:
        assert dist.get_world_size() == count
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def expected() -> dict[str, dict[str, Any]]:
    return {case: outcome(case) for case in CASES}


@pytest.mark.slow
@pytest.mark.parametrize(("count", "is_connected"), [(3, False), (2, True)])
def test_they_give_the_result_of_one(
    count: int, is_connected: bool, expected: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    mp.spawn(run_cases, (count, 0 if is_connected else free_port(), tmp_path), nprocs=count)
    for rank in range(count):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found.keys() == (set(SOME) if is_connected else expected.keys())
        for case in found:
            for name, value in expected[case].items():
                exact = name in ("masks", "statistics", "sensitivities")
                assert_same(found[case][name], value, 1e-12 if exact else 1e-5)
    assert all(expected[case]["repaired"] for case in CASES if "repair" in CASES[case][2])


def failing(rank: int, failing_rank: int, way: str, *, busy: bool) -> Callable[..., Any]:
    """Return a calibration that fails in one process; with `busy`, the others compute for long without an exchange."""
    calibrate = stages.calibrate

    def calibrates(prepared: Any, recipe: Any, tokens: Any, execution: Any) -> Any:
        if rank == failing_rank and way == "raises":
            raise CalibrationError("no more text")
        if rank == failing_rank:
            os._exit(7)
        for _ in execution.steps(range(1200 if busy else 0), "Computing"):
            time.sleep(0.1)
        return calibrate(prepared, recipe, tokens, execution)

    return calibrates


def run_failing(rank: int, count: int, port: int, folder: Path, busy: bool, failing_rank: int, way: str) -> None:
    connect(rank, count, port)
    heartbeat.SILENCE = 5.0
    stages.calibrate = failing(rank, failing_rank, way, busy=busy)
    start = time.monotonic()
    try:
        pruned = llmrank.prune_model(tiny_llama(), calibration=TEXT, repair="none")
        pruned.save(folder / "pruned")
    except BaseException as error:
        (folder / str(rank)).write_text(f"{type(error).__name__} {time.monotonic() - start:.0f} {error}")
        sys.exit(2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("busy", "failing_rank", "way"),
    [(False, 0, "raises"), (True, 1, "dies")],
)
def test_a_process_that_fails_ends_the_others(busy: bool, failing_rank: int, way: str, tmp_path: Path) -> None:
    context, port = mp.get_context("spawn"), free_port()
    children = [
        context.Process(target=run_failing, args=(rank, 3, port, tmp_path, busy, failing_rank, way))
        for rank in range(3)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [7 if k == failing_rank and way == "dies" else 2 for k in range(3)]
    for rank in {0, 1, 2} - {failing_rank}:
        name, seconds, sentence = (tmp_path / str(rank)).read_text().split(maxsplit=2)
        assert name == ProcessError.__name__
        assert int(seconds) < 60  # the busy ones would compute for twice as long
        assert f"process {failing_rank} of the processes 0 to 2 has failed" in sentence
        assert way == "dies" or sentence.endswith("CalibrationError: no more text")
    assert not (tmp_path / "pruned").exists()


def launched(*arguments: Any, count: int = 2) -> subprocess.CompletedProcess[str]:
    """Run ``torchrun --nproc-per-node COUNT -m llmrank ARGUMENTS``."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=300, env=environment
    )


@pytest.mark.slow
def test_command(checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    options = ["prune", checkpoint, "--calibration", corpus, "--samples", 3, "--sequence-length", 16]
    assert run(*options, "--output", tmp_path / "one") == 0
    found = launched("-m", "llmrank", *options, "--output", tmp_path / "two")
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("2 processes divide the calibration text.") == 1
    assert found.stdout.count("Wrote ") == 1
    assert found.stderr.count("Calibrating: 2 steps") == found.stderr.count("Ranking: ") == 1
    masks, expected_masks = (llmrank.Masks.load(tmp_path / name / "masks.safetensors") for name in ("two", "one"))
    assert masks == expected_masks
    weights, expected_weights = (load_file(tmp_path / name / "model.safetensors") for name in ("two", "one"))
    assert_same(weights, {name: expected_weights[name] for name in weights}, 1e-5)
    assert weights.keys() == expected_weights.keys()


DYING = """
import os, sys
from llmrank import cli
from llmrank.pipeline import stages

def die(*arguments):
    if os.environ["RANK"] == "1":
        os._exit(7)
    return rank(*arguments)

rank, stages.rank = stages.rank, die
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_command_when_a_process_dies(checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    script = tmp_path / "dying.py"
    script.write_text(DYING)
    options = ["prune", checkpoint, "--calibration", corpus, "--samples", 3, "--sequence-length", 16]
    found = launched(script, *options, "--output", tmp_path / "pruned")
    assert found.returncode != 0
    assert found.stderr.count("llmrank: error: process 1 of the processes 0 to 1 has failed") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.txt", "dying.py"]


@pytest.mark.slow
def test_a_refused_command_says_so_once(checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    options = ["prune", checkpoint, "--calibration", corpus, "--output", tmp_path / "pruned", "--samples", 1]
    found = launched("-m", "llmrank", *options)
    assert found.returncode != 0
    assert found.stderr.count("llmrank: error:") == 1
    assert "2 processes were started for 1 calibration sequences" in " ".join(found.stderr.split())
    assert not (tmp_path / "pruned").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("prune model --output pruned --low-memory", "start one process, or leave them out"),
        ("prune model --output pruned --device-map auto", "start one process, or leave it out"),
        ("inspect model", "llmrank inspect runs in one"),
    ],
)
def test_refused_commands(arguments: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(OptionError, match=sentence):
        check_processes(parser().parse_args(arguments.split()))


@pytest.mark.parametrize(
    "step", ["Writing calibration text", "Calibrating", "Trying candidates", "Ranking", "Repairing"]
)
def test_a_step_ends_if_another_process_has_failed(step: str) -> None:
    begun: list[str] = []

    def progress(items: Any, description: str) -> Any:
        begun.append(description)
        yield from items

    class Watched(Processes):
        def check_others(self) -> None:
            if begun[-1] == step:
                raise ProcessError("process 1 has failed", 1)

    model = tiny_llama()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    recipe = make_recipe(calibration=CalibrationText("generated", samples=4, sequence_length=24))
    run = PruningRun(model, tokenizer(), recipe, progress=progress, processes=Watched())
    with pytest.raises(ProcessError, match="process 1 has failed"):
        run.run()
    assert begun[-1] == step
    assert_same(dict(model.state_dict()), before, 0.0)


class Pretended(Processes):
    """Several processes, none of which exchanges anything."""

    count = 4


@table(
    ("options", "sentence"),
    [
        ({"work_directory": "work", "undoable": False}, "keeps its files in one place"),
        (
            {"calibration": CalibrationText("built-in", samples=3)},
            "4 processes were started for 3 calibration sequences",
        ),
        ({"calibration": token_ids(3, 24)}, "4 processes need 4 batches .* got 3"),
        ({"calibration": CalibrationText(token_ids(8, 24), batch_size=4)}, "got 2 .8 sequences, 0 .* 4 in a batch"),
        ({"calibration": token_ids(4, 24), "repair": LeastSquaresRepair()}, "got 3 .4 sequences, 1 of them held out"),
    ],
)
def test_refused(options: dict[str, Any], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError, match=sentence):
        IsolatedFFNPipeline(tiny_llama(), None, processes=Pretended(), **options).run()
    assert list(tmp_path.iterdir()) == []


@table("count", [1, 2, 3, 5])
@table(("n", "held_out", "batch_size"), [(5, 0, 1), (9, 2, 2), (12, 1, 2)])
def test_shares(count: int, n: int, held_out: int, batch_size: int) -> None:
    ids = torch.arange(2 * n).view(n, 2)
    whole = TokenSequences(ids, torch.ones_like(ids, dtype=torch.bool), "text", "", held_out)
    shares = [whole.share(number, count, batch_size) for number in range(count)]
    assert sum(share.held_out for share in shares) == held_out
    found: dict[bool, list[Any]] = {False: [], True: []}
    for share in shares:
        fitted, n_fitted = [batch.tolist() for batch, _ in share.batches(batch_size)], len(share) - share.held_out
        while fitted:
            batch = fitted.pop(0)
            found[n_fitted <= 0].append(batch)
            n_fitted -= len(batch)
    batches = [batch.tolist() for batch, _ in whole.batches(batch_size)]
    assert found[False] + found[True] == batches
    assert sum(map(len, found[True])) == held_out
    if count <= len(found[False]):
        assert all(len(share) > share.held_out for share in shares)


def test_one_process_joins_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for environment in ({}, {"RANK": "0", "WORLD_SIZE": "1"}, {"WORLD_SIZE": "2"}):
        with monkeypatch.context() as patch:
            for name in ("RANK", "WORLD_SIZE"):
                patch.delenv(name, raising=False)
            for name, value in environment.items():
                patch.setenv(name, value)
            with join_processes() as processes:
                assert (processes.rank, processes.count) == (0, 1)
                assert not dist.is_initialized()


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "said"), [(0, "process 1 .* has failed"), (1, "process 1 cannot reach process 0 at")])
def test_a_process_that_never_comes_is_named(rank: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launched_as = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    for name, value in launched_as.items():
        monkeypatch.setenv(name, str(value))
    start = time.monotonic()
    with pytest.raises(ProcessError, match=f"{said}.*it did not come within 2 seconds"), join_processes(2.0):
        pass
    assert time.monotonic() - start < 20
    assert not dist.is_initialized()


@table("changed", [{"MASTER_ADDR": ""}, {"MASTER_PORT": "70000"}, {"MASTER_PORT": "no"}, {"RANK": "2"}])
def test_what_a_launcher_cannot_have_set_is_refused(changed: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    right = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in {**right, **changed}.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(OptionError, match="expected RANK below WORLD_SIZE, and the address of process 0"),
        join_processes(),
    ):
        pass


def test_nothing_is_written_to_a_store_that_is_gone() -> None:
    class Gone(dist.HashStore):  # type: ignore[misc]
        n_writes = 0

        def set(self, *_: Any) -> None:
            self.n_writes += 1
            raise RuntimeError("Connection reset by peer")

    store = Gone()
    beating = heartbeat.Heartbeat(store, 1, 2)
    try:
        beating._thread.join(5.0)
        with pytest.raises(ProcessError, match=r"process 0 .*the store that the processes share is gone"):
            beating.check()
        assert store.n_writes == 1
    finally:
        beating.stop()


def test_a_process_that_comes_too_late_ends() -> None:
    """The others have taken it for dead, and said so in the store, which a launcher keeps."""
    store = dist.HashStore()
    store.set("beat/0", "7")
    store.set(heartbeat.FAILED, json.dumps([1, "it did not come within 2 seconds", False]))
    late = heartbeat.Heartbeat(store, 1, 2)
    try:
        with pytest.raises(
            ProcessError, match=r"process 1 .*the others ended, because it did not come within 2 seconds"
        ):
            late.wait_for_all()
    finally:
        late.stop()
