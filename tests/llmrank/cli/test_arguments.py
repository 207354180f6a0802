"""What the commands take: said at once, without the packages that take seconds to import, and in agreement with these."""

from __future__ import annotations

import subprocess
import sys

import pytest

from graphs.io.exchange import exchange_formats
from llmrank.cli import COMMANDS, parser
from llmrank.cli.commands.inspect import OWN_FORMAT, TABLES
from llmrank.experiments.tracking import TRACKERS
from llmrank.inspection.figures import FORMATS
from llmrank.models.costs import UNITS
from llmrank.models.loading import DTYPES
from llmrank.pipeline.registry import PRUNERS
from llmrank.score.pagerank import default_scorer
from llmrank.text.sources import named_sources


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal on which no line is broken."""
    monkeypatch.setenv("COLUMNS", "10000")


def help_of(command: str) -> str:
    action = next(each for each in parser([command])._actions if each.dest == "command")
    assert action.choices is not None
    return " ".join(dict(action.choices)[command].format_help().split())  # type: ignore[arg-type]


@pytest.mark.parametrize("arguments", [*([name, "--help"] for name in COMMANDS), ["families", "qwen3"], ["components"]])
def test_what_is_known_is_said_without_torch(arguments: list[str]) -> None:
    code = (
        "import sys; from llmrank.cli import main\n"
        f"try: status = main({arguments!r})\n"
        "except SystemExit as error: status = error.code\n"
        "assert status == 0; assert not {'torch', 'numpy', 'transformers'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("wrong", [["--nothing"], ["--amount", "much"], ["--calibration", " "]])
def test_wrong_arguments_are_refused_without_torch(wrong: list[str]) -> None:
    code = (
        "import sys; from llmrank.cli import main\n"
        f"try: main(['prune', 'model', '--output', 'pruned', *{wrong!r}])\n"
        "except SystemExit as error: assert error.code == 2; assert not {'torch', 'numpy'} & {*sys.modules}\n"
        "else: raise AssertionError"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stderr=subprocess.DEVNULL)


def test_help_lists_what_there_is() -> None:
    prune, inspect = help_of("prune"), help_of("inspect")
    assert f"auto, {', '.join(DTYPES)} (" in prune
    assert f"unit of the amount: {', '.join(UNITS)};" in prune
    assert f"unit of the amounts: {', '.join(UNITS)} (" in help_of("sweep")
    assert ", ".join(f"{source.syntax()} ({source.summary()})" for source in named_sources().values()) in prune
    assert f"--track {{{','.join(TRACKERS)}}}" in help_of("sweep")
    formats = exchange_formats().values()
    assert f"{', '.join(FORMATS)}, html, and for graphs" in inspect
    assert f"graphs {', '.join(known.name for known in formats if not known.any_size)} (only" in inspect
    assert f"and {', '.join([OWN_FORMAT, *(known.name for known in formats if known.any_size)])} (complete" in inspect
    assert f"with --contexts {', '.join(TABLES)} (" in inspect
    assert f"({default_scorer().label()})" in inspect


def test_without_pruning_no_pruner_that_measures_the_removal_is_offered() -> None:
    needing = {name for name, pruner in PRUNERS.items() if pruner.needs_sensitivity}
    assert all(name in help_of("prune") and f", {name}" not in help_of("inspect") for name in needing)
