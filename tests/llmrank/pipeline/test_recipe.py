"""A recipe checks its fields before anything is done."""

from __future__ import annotations

from typing import Any

import pytest

from llmrank.errors import OptionError
from llmrank.pipeline import CalibrationText, IsolatedFFNPipeline, Recipe
from llmrank.pipeline.pruning_run import PruningRun
from llmrank.pipeline.registry import make_recipe
from tests.llmrank.tiny_models import tiny_llama
from tests.tables import table


@table(
    ("fields", "message"),
    [
        ({"topology": "star"}, "unknown topology 'star'; expected one of isolated, chained, residual"),
        ({"beta": 0.5}, "beta and attention are options of the residual topology, got the isolated one"),
        ({"topology": "chained", "attention": True}, "options of the residual topology, got the chained one"),
        ({"topology": "residual", "beta": 2}, r"beta must be a number in \[0, 1\]"),
        ({"targets": "layers"}, "targets"),
        ({"repair": "lstsq"}, "repair must be an instance of BaseRepair, got 'lstsq'"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Recipe(**fields)


def test_targets_and_texts_may_be_given_as_a_user_writes_them() -> None:
    recipe = Recipe(targets="neurons,experts", calibration="a text", evaluation=True)  # type: ignore[arg-type]
    assert recipe.targets == ("neurons", "experts")
    assert recipe.calibration == CalibrationText("a text")
    assert recipe.evaluation is not None


def test_a_pipeline_of_a_user_is_refused_and_says_what_to_do() -> None:
    class Mine(IsolatedFFNPipeline):
        pass

    with pytest.raises(
        OptionError, match=r"or the class of one, got .*Mine.*call the functions of llmrank.pipeline.stages"
    ):
        make_recipe(Mine)
    assert make_recipe(IsolatedFFNPipeline).topology == "isolated"


def test_what_is_no_recipe_is_refused() -> None:
    with pytest.raises(OptionError, match="recipe must be a Recipe; make_recipe"):
        PruningRun(tiny_llama(), None, "isolated")  # type: ignore[arg-type]
