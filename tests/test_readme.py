"""The README and the documentation tell the truth: their code runs, their commands parse, and what they name exists."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import llmrank
from llmrank.cli import parser
from llmrank.cli.arguments.rank import OF_RANKING
from llmrank.cli.arguments.shared import find_texts
from llmrank.cli.commands.sweep import sweep_settings
from llmrank.cli.options import recipe_of
from llmrank.pipeline import CalibrationText
from llmrank.pipeline.defaults import DEFAULTS
from llmrank.pipeline.registry import (
    PIPELINES,
    PRUNERS,
    REPAIRS,
    SCORERS,
    Registry,
    make_pruner,
    make_repair,
    make_scorer,
)
from llmrank.pipeline.specs import split_specs
from llmrank.prune import LayerRecord
from tests.llmrank.tiny_mixtures import tiny_mixture
from tests.llmrank.tiny_models import LLAMA, POSITIONS, text, tiny_llama, tokenizer
from tests.tables import table

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
# Not the pages that the build writes.
GENERATED = ("_build", "api", "measured", "notebooks")
PAGES = [README, *sorted(path for path in (ROOT / "docs").rglob("*.md") if not set(GENERATED) & set(path.parts))]
every_page = table("page", PAGES)
LINKED = [*PAGES, *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md"))]
# Fences may be indented or longer where one holds another; pages here need neither.
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    return [code for name, code in BLOCK.findall(page.read_text(encoding="utf-8")) if name == language]


def run_code(page: Path) -> dict[str, Any]:
    """Run all code of a page, from top to bottom in one namespace."""
    names: dict[str, Any] = {}
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), names)
    return names


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with the model and the texts that pages name; what a page registers is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    words = tokenizer()
    words.model_max_length = POSITIONS  # as tokenizers of real models have it; other programs cut texts to it
    llmrank.save("path/to/model", tiny_llama(), words)
    llmrank.save("path/to/mixture", tiny_mixture("mixtral"), tokenizer())
    for seed, name in enumerate(("calibration.txt", "evaluation.txt", "my.txt", "my-test.txt")):
        Path(name).write_text(text(2000, seed), encoding="utf-8")
    # The built-in text holds no word of the tiny tokenizer, which would leave nothing to calibrate on but [UNK].
    monkeypatch.setattr("llmrank.text.built_in.builtin_texts", lambda: (text(2000, 2), text(2000, 3)))
    registries: list[Registry[Any]] = [SCORERS, PRUNERS, PIPELINES, REPAIRS]
    before = [dict(registry) for registry in registries]
    yield tmp_path
    for registry, entries in zip(registries, before, strict=True):
        registry.clear()
        registry.update(entries)


@pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules")  # llm-compressor's
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow if page.name == "heal.md" else (), id=page.name)
        for page in PAGES
        if blocks(page, "python")
    ],
)
def test_code_runs_from_top_to_bottom(page: Path, place: Path) -> None:
    if any("from llmcompressor" in code for code in blocks(page, "python")):
        pytest.importorskip("llmcompressor")
    run_code(page)


def test_code_of_the_readme_does_what_it_says(place: Path) -> None:
    names = run_code(README)
    assert names["result"].converged
    assert names["pruned"].model.config.intermediate_size == 28  # 70 % of 40
    assert (place / "pruned" / "masks.safetensors").is_file()


def test_code_of_the_quickstart_does_what_it_says(place: Path) -> None:
    names = run_code(ROOT / "docs" / "quickstart.md")
    assert (names["result"].stop_reason, names["result"].error_bound) == ("exact", 0.0)
    assert names["ranked"].solver_reason.startswith("edges lead back and there are several layers")
    assert names["model"].config.intermediate_size == LLAMA["intermediate_size"]  # undone


def test_code_about_ranks_does_what_it_says(place: Path) -> None:
    names = run_code(ROOT / "docs" / "pagerank.md")
    assert names["ranked"].solver == "gauss-seidel"
    assert names["certified"].stop_reason == "certified"


def test_code_about_perceptrons_does_what_it_says(place: Path) -> None:
    assert run_code(ROOT / "docs" / "guide" / "prune.md")["perceptron"][0].out_features == 22


def test_code_about_budgets_does_what_it_says(place: Path) -> None:
    pruner = run_code(ROOT / "docs" / "extend" / "budget.md")["ProtectEnds"](0.5)
    masks = pruner.prune([LayerRecord(f"{k}", torch.arange(4) / 6) for k in range(3)])
    assert list(masks.widths.values()) == [4, 2, 4]


def commands(page: Path) -> list[str]:
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    return [line for line in lines if line.startswith("llmrank ")]


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_commands_parse(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for settings in blocks(page, "toml"):
        for name in ("run.toml", "sweep.toml"):
            Path(name).write_text(settings, encoding="utf-8")
    Path("pruned").mkdir()
    report = {"config": parser().parse_args(["prune", "MODEL", "--output", "out"]).settings}
    Path("pruned/report.json").write_text(json.dumps(report), encoding="utf-8")
    for command in commands(page):
        options = parser().parse_args(shlex.split(command, comments=True)[1:])
        find_texts(options)
        if hasattr(options, "scorer"):
            ranked: dict[str, Any] = {}
            if options.scorer == OF_RANKING:  # what the ranking names was checked when it was made
                ranked = {name: DEFAULTS[name] for name in ("scorer", "pipeline")} | {"calibration": CalibrationText()}
            recipe_of(options, **ranked)
        if options.command == "sweep":
            for name, make in (
                ("scorers", make_scorer),
                ("pruners", make_pruner),
                ("pipelines", PIPELINES.options),
                ("repairs", make_repair),
            ):
                assert [make(spec) for spec in split_specs(getattr(options, name))], command


def test_a_file_of_settings_is_one_of_a_sweep(place: Path) -> None:
    (block,) = blocks(ROOT / "docs" / "guide" / "sweep.md", "toml")
    Path("sweep.toml").write_text(block, encoding="utf-8")
    options = parser().parse_args(["sweep", "--config", "sweep.toml"])
    settings = sweep_settings(options)
    assert settings.check() is None
    assert len(settings.rows()) == 36
    assert [str(options.calibration), options.model] == ["my.txt", ["path/to/model"]]


def option_names() -> set[str]:
    """All options of all commands."""
    commands = next(action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    return {
        name for command in commands.choices.values() for action in command._actions for name in action.option_strings
    }


@every_page
def test_options_exist(page: Path) -> None:
    """Those in running text; blocks of other programs have their own."""
    prose = BLOCK.sub("", page.read_text(encoding="utf-8"))
    code = [code for code in re.findall(r"`([^`\n]+)`", prose) if code.startswith(("--", "llmrank "))]
    named = {name for piece in code for name in re.findall(r"(?<![\w-])--[a-z][a-z-]*", piece)}
    assert not named - option_names() - {"--help"}


@every_page
def test_files_exist(page: Path) -> None:
    prose = BLOCK.sub("", page.read_text(encoding="utf-8"))
    named = re.findall(r"`((?:graphs|llmrank|tests|benchmarks)/[\w./]+)`", prose)
    assert not [name for name in named if not (ROOT / name).exists()]


@table("page", LINKED)
def test_links_lead_somewhere(page: Path) -> None:
    prose = BLOCK.sub("", page.read_text(encoding="utf-8"))
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", prose) if "://" not in target]
    assert not [target for target in targets if target and not page.parent.joinpath(target).exists()]
    # The build makes pages of the results and the notebooks, and would offer any other file outside of docs for download.
    if ROOT / "docs" in page.parents:
        built = re.compile(r"(\.\./)+(benchmarks/results(/\w+\.md|/[\w.-]+\.png)?|notebooks/\w+\.ipynb)")
        paths = {target: page.parent.joinpath(target).resolve() for target in targets if not built.fullmatch(target)}
        assert not [target for target, path in paths.items() if not path.is_relative_to(ROOT / "docs")]


@every_page
def test_python_names_exist(page: Path) -> None:
    prose = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for role, name in re.findall(r"\{py:(\w+)\}`~?([\w.]+)`", prose):
        module, _, last = name.rpartition(".")
        if role == "mod":
            importlib.import_module(name)
        elif role == "meth":
            module, _, owner = module.rpartition(".")
            assert hasattr(getattr(importlib.import_module(module), owner), last), name
        else:
            assert hasattr(importlib.import_module(module), last), name


def test_pages_hold_nothing_unfinished() -> None:
    assert not [page for page in PAGES if re.search(r"@@|TODO|FIXME", page.read_text(encoding="utf-8"))]


def test_the_extension_guide_lists_every_folder() -> None:
    listed = set(
        re.findall(r"^\| `((?:graphs|llmrank)/\w+)` \|", (ROOT / "docs/extend/index.md").read_text(), re.MULTILINE)
    )
    folders = {
        f"{path.parent.parent.name}/{path.parent.name}"
        for package in ("graphs", "llmrank")
        for path in (ROOT / package).glob("*/__init__.py")
    }
    assert listed == folders
