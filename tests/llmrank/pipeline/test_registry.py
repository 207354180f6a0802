"""Names of the command line -> classes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from llmrank import ChainedFFNPipeline, IsolatedFFNPipeline, ResidualFFNPipeline
from llmrank.errors import OptionError
from llmrank.pipeline.defaults import DEFAULTS
from llmrank.pipeline.recipe import Recipe
from llmrank.pipeline.registry import (
    PIPELINES,
    PRUNERS,
    REGISTRIES,
    REPAIRS,
    SCORERS,
    Registry,
    make_pruner,
    make_recipe,
    make_scorer,
)
from llmrank.prune import BasePruner, GlobalPruner
from llmrank.score import BaseScorer, WeightedPageRankScorer
from tests.tables import table


def test_names() -> None:
    graph, alone = {"wpr", "mpr", "fbpr"}, {"norm", "random", "activation", "wanda", "wanda-sp", "flap"}
    experts = {"frequency", "ean", "reap", "mone"}
    assert set(SCORERS) == graph | alone | experts | {"auto"}
    assert set(PRUNERS) == {"local", "global", "sensitivity", "least-loss"}
    assert dict(PIPELINES) == {
        "isolated": IsolatedFFNPipeline,
        "chained": ChainedFFNPipeline,
        "residual": ResidualFFNPipeline,
    }
    assert make_scorer(DEFAULTS["scorer"]).label() == "auto"
    assert DEFAULTS["pruner"] in PRUNERS
    assert DEFAULTS["pipeline"] in PIPELINES


@table("name", list(SCORERS))
def test_every_scorer_is_made_by_name(name: str) -> None:
    scorer = make_scorer(name)
    assert type(scorer) is SCORERS[name]
    assert isinstance(scorer, BaseScorer)


def test_a_label_is_the_spec_that_was_written() -> None:
    assert make_scorer("wpr:gamma=0.50").label() == "wpr:gamma=0.50"
    assert make_scorer(["wpr"]).label() == make_scorer("wpr,").label() == "wpr"
    assert "written" not in make_scorer("wpr").parameters()
    with pytest.raises(OptionError, match="auto, which is a choice itself; leave it out"):
        make_scorer(["auto", "wpr"])


def test_a_registered_scorer_is_known_by_its_name() -> None:
    @SCORERS.register("mine")
    class Mine(BaseScorer):
        def __init__(self, p: float = 1.0) -> None:
            self._p = p

    try:
        labels = [make_scorer(spec).label() for spec in ("mine:p=1", "mine:p=2")]
    finally:
        del SCORERS["mine"]
    assert labels == ["mine:p=1", "mine:p=2"]


@pytest.mark.parametrize("name", list(PRUNERS))
def test_every_pruner_is_made_by_name(name: str) -> None:
    pruner = make_pruner(name, amount=7)
    assert type(pruner) is PRUNERS[name]
    assert isinstance(pruner, BasePruner)
    assert pruner.amount == 7


def test_options_reach_the_class_and_none_is_left_to_it() -> None:
    assert make_scorer("wpr", gamma=0.9, theta=None) == WeightedPageRankScorer(0.9)
    pruner = make_pruner("global", normalize="mean", min_keep=None)
    assert isinstance(pruner, GlobalPruner)
    assert (pruner.normalize, pruner.min_keep) == ("mean", 1)
    assert vars(make_pruner("sensitivity", limit=3.0))["limit"] == 3.0
    protecting = make_pruner("local", protect=[0, "*.1.*"], amount_of="bytes", min_keep=None)
    assert (protecting.protect, protecting.amount_of) == ((0, "*.1.*"), "bytes")
    with pytest.raises(OptionError, match=r"gamma must be a number in \[0, 1\]"):
        make_scorer("wpr", gamma=2.0)


def test_a_pipeline_of_ones_own_has_no_recipe() -> None:
    """It would not be run: a recipe holds the topology alone."""

    @PIPELINES.register("mine")
    class Mine(IsolatedFFNPipeline):
        pass

    try:
        for pipeline in ("mine", Mine):
            with pytest.raises(OptionError, match=r"to change a stage, call the functions of llmrank.pipeline.stages"):
                make_recipe(pipeline)
    finally:
        del PIPELINES["mine"]


def test_unknown_names_are_answered_with_the_list() -> None:
    with pytest.raises(
        OptionError,
        match="unknown scorer 'pagerank'; expected one of activation, auto, ean, fbpr, flap, frequency,",
    ):
        make_scorer("pagerank")
    with pytest.raises(
        OptionError, match="unknown pruner 'layer'; expected one of global, least-loss, local, sensitivity"
    ):
        make_pruner("layer")
    with pytest.raises(OptionError, match="unknown pipeline 'full'; expected one of chained, isolated, residual"):
        PIPELINES.find("full")


def test_foreign_options_are_answered_with_the_list() -> None:
    with pytest.raises(OptionError, match=r"scorer 'norm' has no option 'gamma'; its options are p \(1.0\)$"):
        make_scorer("norm", gamma=0.5, seed=1, p=None)
    with pytest.raises(OptionError, match="scorer 'wanda' has no option 'p'; it has no options"):
        make_scorer("wanda", p=1)
    with pytest.raises(
        OptionError, match=r"pruner 'local' has no option 'normalize'; its options are amount \(0.3\), min_keep"
    ):
        make_pruner("local", normalize="mean")
    with pytest.raises(OptionError, match=r"pruner 'global' has no option 'limit'; its options are amount \(0.3\)"):
        make_pruner("global", limit=3.0)


def test_register() -> None:
    registry: Registry[BaseScorer] = Registry("scorer", BaseScorer, {"wpr": WeightedPageRankScorer})

    @registry.register("mine")
    class Mine(BaseScorer):
        def __init__(self, power: float = 1.0) -> None:
            self.power = power

        def score(self, prev_importance: Any, in_activations: Any, out_activations: Any, weight: Any) -> Any:
            return weight.sum(1) ** self.power

    made = registry.make("mine", power=2.0)
    assert isinstance(made, Mine)
    assert made.power == 2.0
    with pytest.raises(OptionError, match="cannot register Mine as scorer 'mine': expected a name that is free"):
        registry.register("mine")(Mine)
    registry._entry_points = {"far": metadata.EntryPoint("far", "far_scorer:Power", "llmrank.scorers")}
    with pytest.raises(OptionError, match="cannot register Mine as scorer 'far': expected a name that is free"):
        registry.register("far")(Mine)
    with pytest.raises(OptionError, match="expected a subclass of BaseScorer"):
        registry.register("other")(GlobalPruner)  # type: ignore[arg-type]
    assert set(registry) == {"wpr", "mine"}
    assert "mine" not in SCORERS


@table(
    ("registry", "spec", "options"),
    [
        (SCORERS, "wpr:gamma=0.9,edges=energy", {"gamma": 0.9, "edges": "energy"}),
        (SCORERS, "random:seed=3", {"seed": 3}),
        (PRUNERS, "global:normalize=robust,min-keep=8", {"normalize": "robust", "min_keep": 8}),
        (PRUNERS, "local:protect=0,protect=*.1.*", {"protect": [0, "*.1.*"]}),
        (PRUNERS, "local:amount=3", {"amount": 3}),
        (PRUNERS, "local:amount=0.5", {"amount": 0.5}),
        (REPAIRS, "lstsq:damping=auto,reselect=True", {"damping": "auto", "reselect": True}),
        (REPAIRS, "lstsq:damping=0.01", {"damping": 0.01}),
        (PIPELINES, "residual:beta=measured,attention=false", {"beta": "measured", "attention": False}),
        (SCORERS, "wpr:device=none", {"device": None}),
    ],
)
def test_a_spec_is_read_by_the_fields_of_the_class(registry: Registry[Any], spec: str, options: dict[str, Any]) -> None:
    entry, found = registry.options(spec)
    assert entry is registry[spec.partition(":")[0]]
    assert found == options
    assert {key: type(value) for key, value in found.items()} == {key: type(value) for key, value in options.items()}


@table("registry", REGISTRIES)
def test_every_option_has_a_type_and_a_line_of_documentation(registry: Registry[Any]) -> None:
    for name in registry.names():
        for field in registry.fields(name):
            assert field.kind, f"{name}:{field.name}"
            assert field.doc, f"{name}:{field.name}"
            assert "As for" not in field.doc, f"{name}:{field.name}"


WHEEL = {
    "far_scorer.py": """
from dataclasses import dataclass

from llmrank.score import BaseScorer


@dataclass(frozen=True)
class Power(BaseScorer):
    '''Sum of powers of the edge weights.

    Parameters
    ----------
    power : float
        Exponent of a weight.
    '''

    power: float = 1.0

    def score(self, prev_importance, in_activations, out_activations, weight):
        return (weight**self.power).sum(1)
""",
    "far-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: far\nVersion: 1.0\n",
    "far-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "far-1.0.dist-info/entry_points.txt": "[llmrank.scorers]\nfar = far_scorer:Power\nbroken = no_such_module:X\n",
    "far-1.0.dist-info/RECORD": "",
}


@pytest.mark.slow
def test_another_distribution_adds_a_scorer(tmp_path: Path) -> None:
    wheel = tmp_path / "far-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in WHEEL.items():
            archive.writestr(name, content)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(tmp_path / "site")]
    subprocess.run([*pip, str(wheel)], check=True)
    command = [sys.executable, "-m", "llmrank", "components"]
    paths = os.pathsep.join([str(tmp_path / "site"), str(Path(__file__).parents[3])])
    environment = {**os.environ, "PYTHONPATH": paths, "COLUMNS": "100"}

    def shown(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *more], capture_output=True, text=True, env=environment, check=False)

    described = shown("far")
    assert described.returncode == 0, described.stderr
    assert "Sum of powers of the edge weights." in described.stdout
    assert re.search(r"power +number +1\.0 +Exponent of a weight\.", described.stdout)
    everything = shown()
    assert everything.returncode == 0, everything.stderr
    assert "Sum of powers" in everything.stdout
    assert "cannot be imported" in everything.stdout
    refused = shown("broken")
    assert refused.returncode == 2
    assert "scorer 'broken' of no_such_module:X cannot be imported" in refused.stderr
    used = "from llmrank.pipeline.registry import make_scorer; print(make_scorer('far:power=2').power)"
    outcome = subprocess.run(
        [sys.executable, "-c", used], capture_output=True, text=True, env=environment, check=True, cwd=tmp_path
    )
    assert outcome.stdout == "2.0\n"


def test_the_defaults_of_specs_are_those_of_a_recipe() -> None:
    by_spec, plain = make_recipe(), Recipe()
    assert by_spec.settings() == plain.settings()
    assert plain.calibration.source == DEFAULTS["calibration"]
