"""The figures of an inspection: they draw its results, and their files are reproducible."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from graphs.analysis.measures import gini
from graphs.io.replacement import hidden_directory
from llmrank.errors import CheckpointError, OptionError
from llmrank.inspection.figures import (
    draw_agreement,
    draw_concentration,
    draw_layer,
    draw_removed_neurons,
    new_figure,
    save_figure,
    write_figures,
)
from llmrank.inspection.inspect_model import Inspection, inspect_model
from llmrank.inspection.summary import summarise_inspection
from llmrank.prune import GlobalPruner
from llmrank.score import ActivationScorer, NormScorer, WeightedPageRankScorer
from llmrank.surgery.atomic import NAME_INSIDE, check_output
from tests.llmrank.plain_pipelines import ChainedFFNPipeline, IsolatedFFNPipeline
from tests.llmrank.tiny_models import STRUCTURE, tiny_llama, token_ids

WPR, ACTIVATION = WeightedPageRankScorer(), ActivationScorer()


def inspected(scorers: dict[str, Any], topology: type = ChainedFFNPipeline, layers: int = 2) -> Inspection:
    model = tiny_llama(num_hidden_layers=layers)
    pipeline = topology(model, None, pruner=GlobalPruner(0.4), calibration=token_ids())
    return inspect_model(pipeline, scorers, "wpr", "global")


@pytest.fixture(scope="module")
def inspection() -> Inspection:
    return inspected({"wpr": WPR, "norm": NormScorer(), "activation": ACTIVATION})


def drawn(figure: Figure) -> Figure:
    """Draw the figure, so that errors show up, and return it."""
    figure.canvas.draw()
    return figure


def words(figure: Figure) -> str:
    from matplotlib.text import Text

    return "\n".join(text.get_text() for text in figure.findobj(Text))


def test_the_cut_and_the_bars_follow_from_the_masks(inspection: Inspection) -> None:
    masks = inspection.main.masks["global"]
    figure = drawn(draw_removed_neurons(inspection.main.importance, masks, "global"))
    heat, bars = figure.axes[:2]
    assert (
        heat.get_title() == "2 layers: scores of the hidden neurons; those right of the white line are removed (global)"
    )
    kept = [float(mask.double().mean()) for mask in masks.values()]
    heights = [bar.get_height() for bar in bars.patches]
    assert heights == pytest.approx([*kept, *(1 - share for share in kept)])
    (line,) = [line for line in bars.lines if len(line.get_ydata()) == len(kept)]
    lost = [float(inspection.main.importance[name][~mask.numpy()].sum()) for name, mask in masks.items()]
    assert line.get_ydata() == pytest.approx(lost)


def test_nodes_are_called_neurons(inspection: Inspection) -> None:
    figures = (
        draw_removed_neurons(inspection.main.importance, inspection.main.masks["global"]),
        draw_concentration(inspection),
        draw_agreement(inspection),
    )
    for figure in figures:
        assert "neuron" in words(drawn(figure))
        assert "node" not in words(figure)


def test_concentration_names_model_scorer_and_gini(inspection: Inspection) -> None:
    figure = drawn(draw_concentration(inspection))
    assert figure.get_suptitle() == "LlamaForCausalLM: scores by wpr, chained"
    for scores in inspection.main.importance.values():
        assert f"{gini(scores):.2f}" in words(figure)


def test_agreement_says_what_the_summary_says(inspection: Inspection) -> None:
    """The scorer activation is compared if there is one, and the other topology always."""
    figure = drawn(draw_agreement(inspection))
    found = summarise_inspection(inspection).agreement
    labels = [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel().startswith("percentile")]
    assert labels == ["percentile in its layer by activation", "percentile in its layer by wpr, isolated"]
    for axes, entry in zip(figure.axes, (found["activation"], found["isolated"]), strict=False):
        title = " ".join(axes.get_title().split())
        assert title.endswith(f"keeps {entry.global_:.0%}".replace("%", " %"))
        assert title.startswith("Spearman ")


def test_agreement_without_another_scorer_compares_the_topologies() -> None:
    figure = drawn(draw_agreement(inspected({"wpr": WPR}, IsolatedFFNPipeline)))
    assert [axes.get_ylabel() for axes in figure.axes] == ["percentile in its layer by wpr, chained"]
    figure = drawn(draw_agreement(inspected({"norm": NormScorer(), "wpr": WPR})))
    assert figure.axes[0].get_ylabel() == "percentile in its layer by norm"


@pytest.mark.parametrize("topology", [ChainedFFNPipeline, IsolatedFFNPipeline])
def test_a_layer_is_drawn_with_its_highest_neurons(topology: type) -> None:
    inspection = inspected({"wpr": WPR}, topology)
    name = list(inspection.layers)[1]
    figure = drawn(draw_layer(inspection, name, top=4))
    assert figure.get_suptitle() == f"LlamaForCausalLM: {name}"
    written = words(figure.subfigs[0]).split("\n")
    highest = np.argsort(-inspection.main.importance[name], kind="stable")[:4]
    assert {str(neuron) for neuron in highest} <= set(written)
    assert "36 others" in words(figure)


def test_a_layer_at_the_end_of_its_graph_is_drawn() -> None:
    pipeline = ChainedFFNPipeline(tiny_llama(), None, STRUCTURE, calibration=token_ids())
    inspection = inspect_model(pipeline, {"wpr": WPR}, "wpr")
    drawn(draw_layer(inspection, list(inspection.layers)[-1], top=3))


@pytest.mark.slow
def test_files_have_their_names_and_are_reproducible(inspection: Inspection, tmp_path: Path) -> None:
    names = list(inspection.layers)
    for place in ("once", "again"):
        (tmp_path / place).mkdir()
    once = write_figures(inspection, tmp_path / "once", ["png", "svg"], top=3, names=names[1:])
    again = write_figures(inspection, tmp_path / "again", ["png", "svg"], top=3, names=names[1:])
    stems = ("removed_neurons", "concentration", "agreement", "layer-1")
    assert [path.name for path in once] == [f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")]
    assert sorted(once) == sorted((tmp_path / "once").iterdir())
    for one, other in zip(once, again, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name
    # No figure is left in pyplot's list of open figures.
    assert plt.get_fignums() == []


def test_a_figure_appears_completely_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [path] = save_figure(new_figure(1, 1), tmp_path, "drawn", ["png"])
    before = path.read_bytes()

    def full(_figure: Any, path: Path, **_options: Any) -> None:
        path.write_bytes(b"half a figure")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(OSError, match="No space left"):
        save_figure(new_figure(1, 1), tmp_path, "drawn", ["png"])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_leaves_of_a_figure_is_removed(tmp_path: Path) -> None:
    with hidden_directory(tmp_path, NAME_INSIDE) as alive:
        left = tmp_path / alive.name.replace(".partial", "x.partial")
    left.mkdir()
    paths = save_figure(new_figure(1, 1), tmp_path, "drawn", ["png"])
    assert list(tmp_path.iterdir()) == paths
    left.mkdir()
    # The next run of a command that draws into its checkpoint refuses the output, which is complete.
    with pytest.raises(CheckpointError, match="not empty"):
        check_output(tmp_path)
    assert list(tmp_path.iterdir()) == paths


@pytest.mark.slow
@pytest.mark.parametrize(("layers", "wanted"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (6, [0, 2, 5])])
def test_the_first_the_middle_and_the_last_layer_are_drawn_by_default(
    tmp_path: Path, layers: int, wanted: list[int]
) -> None:
    written = write_figures(inspected({"wpr": WPR}, layers=layers), tmp_path, ["svg"], top=2)
    assert [path.stem for path in written[3:]] == [f"layer-{number}" for number in wanted]


def test_wrong_names_are_refused_before_a_figure_is_written(inspection: Inspection, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no prunable layer 'mlp'; expected one of model"):
        write_figures(inspection, tmp_path, ["png"], names=["mlp"])
    with pytest.raises(OptionError, match="written as png, svg, got pdf"):
        write_figures(inspection, tmp_path, ["png", "pdf"])
    with pytest.raises(OptionError, match="no prunable layer 'mlp'"):
        draw_layer(inspection, "mlp")
    assert list(tmp_path.iterdir()) == []
