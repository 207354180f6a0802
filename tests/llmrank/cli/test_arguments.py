"""What the commands take: said at once, without the packages that take seconds to import, and in agreement with these."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from graphs.io.exchange import exchange_formats
from llmrank.cli import COMMANDS, parser
from llmrank.cli.arguments.heal import AUTOMATIC, KNOBS
from llmrank.cli.commands.inspect import OWN_FORMAT, TABLES
from llmrank.experiments.tracking import TRACKERS
from llmrank.healing import Distillation
from llmrank.inspection.figures import FORMATS
from llmrank.models.costs import UNITS
from llmrank.models.loading import DTYPES
from llmrank.named_classes import load_class, named_classes
from llmrank.pipeline import BasePipeline
from llmrank.pipeline.registry import PRUNERS
from llmrank.prune import BasePruner
from llmrank.repair import BaseRepair
from llmrank.score import BaseScorer
from llmrank.score.pagerank import default_scorer
from llmrank.text.base_source import BaseSource
from llmrank.text.built_in import BuiltInText
from llmrank.text.dataset import Dataset
from llmrank.text.generated import Automatic
from llmrank.text.places import DATASET
from llmrank.text.sources import named_sources


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal on which no line is broken."""
    monkeypatch.setenv("COLUMNS", "10000")


def help_of(command: str) -> str:
    action = next(each for each in parser([command])._actions if each.dest == "command")
    assert action.choices is not None
    return " ".join(dict(action.choices)[command].format_help().split())  # type: ignore[arg-type]


PRUNE = ["prune", "model", "--output", "pruned"]


@pytest.mark.parametrize(
    ("status", "arguments"),
    [
        *((0, [name, "--help"]) for name in COMMANDS),
        (0, ["families", "qwen3"]),
        (0, ["components"]),
        (2, [*PRUNE, "--nothing"]),
        (2, [*PRUNE, "--amount", "much"]),
        (2, [*PRUNE, "--calibration", " "]),
        (2, [*PRUNE, "--max-memory", "all"]),
        (2, [*PRUNE, "--samples", "0"]),
    ],
)
def test_help_lists_and_wrong_arguments_need_no_torch(status: int, arguments: list[str]) -> None:
    code = (
        "import sys; from llmrank.cli import main\n"
        f"try: status = main({arguments!r})\n"
        "except SystemExit as error: status = error.code\n"
        f"assert status == {status}; assert not {{'torch', 'numpy', 'transformers'}} & {{*sys.modules}}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_help_lists_what_there_is() -> None:
    prune, inspecting = help_of("prune"), help_of("inspect")
    assert f"auto, {', '.join(DTYPES)} (" in prune
    assert f"unit of the amount: {', '.join(UNITS)};" in prune
    assert f"unit of the amounts: {', '.join(UNITS)} (" in help_of("sweep")
    summaries = {each: (each.__doc__ or "").partition("\n")[0].rstrip(".") for each in named_sources().values()}
    described = [f"{each.syntax()} ({text[0].lower()}{text[1:]})" for each, text in summaries.items()]
    assert ", ".join(described) in prune
    assert f"--track {{{','.join(TRACKERS)}}}" in help_of("sweep")
    formats = exchange_formats().values()
    assert f"{', '.join(FORMATS)}, html, and for graphs" in inspecting
    assert f"graphs {', '.join(known.name for known in formats if not known.any_size)} (only" in inspecting
    assert (
        f"and {', '.join([OWN_FORMAT, *(known.name for known in formats if known.any_size)])} (complete" in inspecting
    )
    assert f"with --contexts {', '.join(TABLES)} (" in inspecting
    assert f"({default_scorer().label()})" in inspecting
    assert set(KNOBS) <= {field.name for field in fields(Distillation)}


def test_the_names_of_sources_are_theirs() -> None:
    assert named_sources()[AUTOMATIC] is Automatic
    assert f"{Dataset.name}:" == DATASET
    defaults = [parser([name]).parse_args([name]).calibration for name in ("demo", "inspect")]
    assert defaults == [BuiltInText.name] * 2


@pytest.mark.parametrize(
    ("package", "base", "attribute"),
    [
        ("llmrank.score", BaseScorer, "name"),
        ("llmrank.prune", BasePruner, "name"),
        ("llmrank.repair", BaseRepair, "name"),
        ("llmrank.text", BaseSource, "name"),
        ("llmrank.pipeline", BasePipeline, "topology"),
    ],
)
def test_the_sources_name_the_classes_that_inherit(package: str, base: type, attribute: str) -> None:
    path = importlib.import_module(package).__path__
    modules = [importlib.import_module(f"{package}.{info.name}") for info in pkgutil.iter_modules(path)]
    classes = [each for module in modules for each in vars(module).values() if isinstance(each, type)]
    inheriting = {each for each in classes if issubclass(each, base) and attribute in vars(each)}
    found = named_classes(package, attribute)
    assert {vars(each)[attribute]: each for each in inheriting} == {k: load_class(v.value) for k, v in found.items()}
    assert all(inspect.getdoc(load_class(each.value)) == each.doc for each in found.values())


def test_declarations_of_every_form_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "named").mkdir()
    (tmp_path / "named" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="named has no sources"):
        named_classes("named")
    forms = [
        'name = "a"',
        'name: ClassVar[str] = "b"',
        'name: "typing.ClassVar[str]" = "c"',
        'name: str = "d"',
        "name: str",
    ]
    classes = "\n".join(f"class C{k}:\n    {form}" for k, form in enumerate(forms))
    (tmp_path / "named" / "forms.py").write_text(classes, encoding="utf-8")
    assert [(name, each.value) for name, each in named_classes("named").items()] == [
        ("a", "named.forms:C0"),
        ("b", "named.forms:C1"),
        ("c", "named.forms:C2"),
    ]


def test_without_pruning_no_pruner_that_measures_the_removal_is_offered() -> None:
    needing = {name for name, pruner in PRUNERS.items() if pruner.needs_sensitivity}
    assert all(name in help_of("prune") and f", {name}" not in help_of("inspect") for name in needing)
