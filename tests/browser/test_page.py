"""The page in a browser: it shows what the library computes, and works with the mouse and with the keyboard."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from graphs.analysis.measures import share_also_kept
from graphs.analysis.node_summary import summarise_node
from llmrank.inspection.inspect_model import Inspection, inspect_model
from llmrank.inspection.mixtures import summarise_experts
from llmrank.inspection.page import write_page
from llmrank.inspection.summary import margin, summarise_neuron
from llmrank.prune import GlobalPruner, LayerRecord, LocalPruner
from llmrank.prune.masks import Masks
from llmrank.score import ActivationScorer, RandomScorer, WeightedPageRankScorer
from tests.llmrank.inspection.test_page import HOSTILE, hostile_inspection
from tests.llmrank.plain_pipelines import ChainedFFNPipeline, IsolatedFFNPipeline
from tests.llmrank.tiny_mixtures import tiny_mixture
from tests.llmrank.tiny_models import tiny_llama, token_ids

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def inspection() -> Inspection:
    model = tiny_llama(num_hidden_layers=12, intermediate_size=90)
    scorers = {"wpr": WeightedPageRankScorer(), "activation": ActivationScorer(), "random": RandomScorer(seed=1)}
    return inspect_model(ChainedFFNPipeline(model, None, calibration=token_ids()), scorers, "wpr")


@pytest.fixture(scope="module")
def path(inspection: Inspection, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(inspection, tmp_path_factory.mktemp("page") / "index.html")


def masks(inspection: Inspection, scorer: str, budget: str, percent: int, multiple: int = 1) -> Masks:
    layers = [LayerRecord(name, torch.from_numpy(v)) for name, v in inspection.results[scorer].importance.items()]
    budgets = {"local": LocalPruner, "global": GlobalPruner}
    return budgets[budget](percent / 100, multiple_of=multiple).prune(layers)


def removed(mask: torch.Tensor) -> list[int]:
    return (~mask).nonzero()[:, 0].tolist()


def rows(page: Any, table: str = "neurons") -> list[list[str]]:
    return page.eval_on_selector_all(
        f"#{table} tbody tr", "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    )


def listed_as(page: Any, state: str) -> list[int]:
    """Return the neurons of the open layer that a filter of the table leaves, from all pages of the table."""
    page.select_option("#filter", state)
    listed = [int(row[0]) for row in rows(page)]
    while page.is_enabled("#page-next"):
        page.click("#page-next")
        listed += [int(row[0]) for row in rows(page)]
    page.select_option("#filter", "all")
    return sorted(listed)


# --- the page and its charts


def test_the_page_opens_and_says_which_inspection_it_shows(visit: Open, path: Path, inspection: Inspection) -> None:
    page = visit(path).page
    assert page.title() == inspection.source
    text = page.inner_text("#provenance")
    for part in ("chained", "wpr, local, 30 %", "1,080 in 12 layers", "sequences"):
        assert part in text
    assert page.locator("main .plot > svg").count() == 3
    assert page.locator("#notes").is_hidden()
    assert page.locator("#scorer option").all_inner_texts() == ["wpr", "activation", "random", "wpr, isolated"]


HEAT = """() => new Promise(done => {
  const image = new Image();
  image.onload = () => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.width, image.height];
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    const { data } = context.getImageData(0, 0, image.width, image.height);
    done([image.width, image.height, [...data]]);
  };
  image.src = document.querySelector("#overview-plot image").getAttribute("href");
})"""


def test_charts_draw_the_inspection(visit: Open, path: Path, inspection: Inspection) -> None:
    page = visit(path).page
    # The heat map has a pixel for each bucket, and lighter colours for higher scores.
    width, height, pixels = page.evaluate(HEAT)
    assert (width, height) == (100, 12)
    colours = np.array(pixels).reshape(height, width, 4)
    assert (colours[..., 3] == 255).all()
    assert (np.diff(colours[..., :3].sum(axis=2), axis=1) <= 2).all()
    # 90 neurons in 100 buckets: the first bucket is the highest neuron.
    scores = next(iter(inspection.main.importance.values()))
    row = page.locator("#overview-plot [data-layer='0']")
    row.hover(position={"x": 1, "y": 5})
    shown = float(re.findall(r"mean score ([\d.]+) ", page.inner_text("#tip"))[0])
    assert shown == pytest.approx(90 * scores.max(), rel=1e-3)
    counts = page.eval_on_selector_all(
        "#distribution-plot .bin", "bins => bins.map(bin => [bin.classList[1], Number(bin.dataset.count)])"
    )
    assert {name: sum(n for each, n in counts if each == name) for name in ("removed", "kept")} == {
        "removed": 27,
        "kept": 63,
    }
    highest = np.argsort(-scores, kind="stable")[:8].tolist()
    assert page.eval_on_selector_all("#subgraph-plot .neuron", "marks => marks.map(m => +m.dataset.neuron)") == highest
    held = float(re.findall(r"hold ([\d.]+) %", page.inner_text("#subgraph-caption"))[0])
    assert held == pytest.approx(100 * np.sort(scores)[-8:].sum(), abs=0.06)


def test_the_cuts_are_drawn_where_the_library_cuts(visit: Open, path: Path, inspection: Inspection) -> None:
    opened = visit(path)
    opened.amount(50)
    opened.settle()
    rows, cut = opened.page.evaluate(
        """() => {
          const box = element => { const { x, y, width, height } = element.getBBox(); return [x, y, width, height]; };
          const rows = [...document.querySelectorAll("#overview-plot [data-layer]")].map(box);
          return [rows, document.querySelector("#overview-plot .cut.other").getAttribute("d")];
        }"""
    )
    points = [tuple(map(float, point.split(","))) for point in cut[1:].split("L")]
    keep = masks(inspection, "wpr", "global", 50).values()
    for (left, top, width, height), mask, upper, lower in zip(rows, keep, points[::2], points[1::2], strict=True):
        share = float(mask.double().mean())
        assert upper == pytest.approx((left + share * width, top), abs=0.01)
        assert lower == pytest.approx((left + share * width, top + height), abs=0.01)


def test_clicks_on_the_charts_open_layers_and_neurons(visit: Open, path: Path, inspection: Inspection) -> None:
    opened = visit(path, viewport={"width": 1280, "height": 1600})
    page = opened.page
    for layer, x in ((7, 20), (3, 250)):  # among the kept neurons, and under the veil of the removed ones
        opened.settle()
        page.locator(f"#overview-plot [data-layer='{layer}']").click(position={"x": x, "y": 5})
        opened.until(f"document.getElementById('layer-choice').value === '{layer}'")
    opened.settle()
    second = np.argsort(-list(inspection.main.importance.values())[3], kind="stable")[1]
    page.click(f"#subgraph-plot [data-neuron='{second}']")
    assert page.inner_text("#neuron-heading") == f"Neuron 3:{second}"


def test_charts_describe_the_element_under_the_pointer(visit: Open, path: Path, inspection: Inspection) -> None:
    page = visit(path).page
    assert page.is_hidden("#tip")
    page.locator("#overview-plot .effective").first.hover()
    assert "effective number of neurons: " in page.inner_text("#tip")
    page.locator("#distribution-plot .target").first.hover()
    assert "1 removed" in page.inner_text("#tip")
    page.locator("#subgraph-plot .neuron").first.hover()
    assert page.inner_text("#tip").endswith("kept")
    page.locator("#subgraph-plot .node").first.hover()
    assert "model.layers.0.mlp:input" in page.inner_text("#tip")
    page.hover("h1")
    assert page.is_hidden("#tip")


# --- budgets


@pytest.mark.parametrize("scorer", ["wpr", "activation", "random"])
@pytest.mark.parametrize("budget", ["local", "global"])
def test_the_slider_shows_the_masks_of_the_library(
    visit: Open, path: Path, inspection: Inspection, scorer: str, budget: str
) -> None:
    opened = visit(path)
    page = opened.page
    page.select_option("#scorer", scorer)
    page.check(f"[name=budget][value={budget}]")
    page.select_option("#layer-choice", "5")
    name = list(inspection.layers)[5]
    for percent in (0, 1, 5, 30, 35, 50, 77, 90):
        opened.amount(percent)
        for each in ("local", "global"):
            expected = masks(inspection, scorer, each, percent)
            assert opened.number(f"#count-{each} .removed") == expected.size - expected.kept
            assert opened.number(f"#count-{each} .kept") == expected.kept
            column = 2 if each == "local" else 3
            shown = [int(row[column].replace("\N{MINUS SIGN}", "").replace(",", "")) for row in rows(page, "layers")]
            assert shown == [len(mask) - int(mask.sum()) for mask in expected.values()]
        # The page shows the right neurons of the open layer, not only their number.
        assert listed_as(page, "removed") == removed(masks(inspection, scorer, budget, percent)[name])


def test_counts_change_while_the_slider_moves(visit: Open, path: Path) -> None:
    """The counts change within the event itself, before the next frame."""
    page = visit(path).page
    before, after = page.evaluate(
        """() => {
          const read = () => document.querySelector('#count-local .removed').textContent;
          const slider = document.getElementById('amount');
          const before = read();
          slider.value = 60;
          slider.dispatchEvent(new Event('input', { bubbles: true }));
          return [before, read()];
        }"""
    )
    assert (before, after) == ("324", "648")


def test_the_page_starts_at_the_amount_of_the_inspection_and_returns_to_it(
    visit: Open, tmp_path: Path, inspection: Inspection
) -> None:
    model = tiny_llama()
    pipeline = ChainedFFNPipeline(model, None, pruner=GlobalPruner(0.333), calibration=token_ids())
    odd = inspect_model(pipeline, {"wpr": WeightedPageRankScorer()}, "wpr", "global")
    opened = visit(write_page(odd, tmp_path / "index.html"))
    page = opened.page
    assert page.inner_text("#amount-shown") == "33.3 %"
    assert page.is_checked("[name=budget][value=global]")
    assert opened.number("#count-global .removed") == math.ceil(0.333 * 80)
    assert opened.number("#count-local .removed") == 2 * round(0.333 * 40)
    assert page.is_disabled("#as-inspected")
    opened.amount(50)
    assert opened.number("#count-global .removed") == 40
    page.click("#as-inspected")
    assert opened.number("#count-global .removed") == 27
    assert page.inner_text("#amount-shown") == "33.3 %"


def test_the_page_shows_the_refusals_of_the_library(visit: Open, tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    pipeline = ChainedFFNPipeline(model, None, calibration=torch.rand(20, 4))
    tiny = inspect_model(pipeline, {"activation": ActivationScorer()}, "activation")
    opened = visit(write_page(tiny, tmp_path / "index.html"))
    opened.amount(90)
    assert "refused: 0 would keep 0 of 3 neurons, fewer than min_keep=1" in opened.page.inner_text("#count-local")
    assert "refused" in opened.page.inner_text("#count-global")
    assert opened.number("#layers tbody td:nth-child(3)") == 0


@pytest.mark.parametrize("multiple", [8, 64, 128])
def test_widths_are_rounded_as_in_the_library(visit: Open, path: Path, inspection: Inspection, multiple: int) -> None:
    opened = visit(path)
    page = opened.page
    page.select_option("#multiple", str(multiple))
    page.select_option("#layer-choice", "5")
    name = list(inspection.layers)[5]
    importance = inspection.main.importance[name]
    for budget in ("local", "global"):
        page.check(f"[name=budget][value={budget}]")
        for percent in (0, 3, 30, 52, 90):
            opened.amount(percent)
            for each in ("local", "global"):
                expected = masks(inspection, "wpr", each, percent, multiple)
                assert opened.number(f"#count-{each} .removed") == expected.size - expected.kept
                column = 2 if each == "local" else 3
                shown = [
                    int(row[column].replace("\N{MINUS SIGN}", "").replace(",", "")) for row in rows(page, "layers")
                ]
                assert shown == [len(mask) - int(mask.sum()) for mask in expected.values()]
            assert listed_as(page, "removed") == removed(masks(inspection, "wpr", budget, percent, multiple)[name])
    # The facts of a neuron follow from the rounded widths too.
    opened.amount(30)
    neuron = int(importance.argmin())
    page.fill("#query", f"5:{neuron}")
    page.press("#query", "Enter")
    cells = page.locator("#neuron .verdicts tbody tr").first.locator("td").all_inner_texts()
    for budget, (state, ratio, at) in {"local": cells[2:5], "global": cells[5:8]}.items():
        keep = masks(inspection, "wpr", budget, 30, multiple)[name].numpy()
        assert state == ("kept" if keep[neuron] else "removed")
        wanted = margin(importance, keep, neuron)
        assert ratio == "\N{EN DASH}" if math.isnan(wanted) else float(ratio) == pytest.approx(wanted, rel=1e-3)
        goes = [p for p in range(91) if not masks(inspection, "wpr", budget, p, multiple)[name][neuron]]
        assert at == (f"{goes[0]} %" if goes else "> 90 %")


def test_the_page_starts_with_the_settings_of_the_inspection(visit: Open, tmp_path: Path) -> None:
    pruner = GlobalPruner(0.4, min_keep=5, multiple_of=6, normalize="mean")
    pipeline = ChainedFFNPipeline(tiny_llama(), None, pruner=pruner, calibration=token_ids())
    seen = inspect_model(pipeline, {"wpr": WeightedPageRankScorer()}, "wpr", "global")
    opened = visit(write_page(seen, tmp_path / "index.html"))
    page = opened.page
    assert page.locator("#multiple option:checked").inner_text() == "multiples of 6"
    assert page.locator("#notes").is_hidden()
    name = next(iter(seen.layers))
    for budget, kept in seen.main.masks.items():
        page.check(f"[name=budget][value={budget}]")
        assert opened.number(f"#count-{budget} .kept") == kept.kept
        assert listed_as(page, "removed") == removed(kept[name])
    page.select_option("#multiple", "1")
    records = [LayerRecord(layer, torch.from_numpy(values)) for layer, values in seen.main.importance.items()]
    plain = GlobalPruner(0.4, min_keep=5, normalize="mean").prune(records)
    assert opened.number("#count-global .kept") == plain.kept


# --- search


FOUND = {
    "3:17": "3:17",
    "3 17": "3:17",
    " 3 / 17 ": "3:17",
    "model.layers.3.mlp 17": "3:17",
    "model.layers.3.mlp:17": "3:17",
    "layers.3 #17": "3:17",
    "LAYERS.3 #17": "3:17",
    "layer 3 neuron 17": "3:17",
    "layers.11, 0": "11:0",
    "17": "0:17",
    "0:89": "0:89",
}


def test_search_finds_layers_and_neurons(visit: Open, path: Path) -> None:
    page = visit(path).page
    for query, found in FOUND.items():
        # The search starts in the first layer, in a table sorted by place, so it has to turn the pages.
        page.select_option("#layer-choice", "0")
        page.fill("#query", query)
        page.press("#query", "Enter")
        assert page.inner_text("#neuron-heading") == f"Neuron {found}", query
        layer, neuron = found.split(":")
        assert f"neuron {neuron} of layer {layer}" in page.inner_text("#query-result")
        assert page.input_value("#layer-choice") == layer
        assert page.inner_text("#neurons [aria-current]") == neuron
    for query in ("layers.3", "model.layers.3.mlp", "layer 3"):
        page.select_option("#layer-choice", "0")
        page.fill("#query", query)
        page.click("#search button")
        assert page.inner_text("#layer-heading").startswith("Layer 3"), query


def test_search_says_why_it_finds_nothing(visit: Open, path: Path) -> None:
    page = visit(path).page
    for query, answer in {
        "3:90": "has neurons 0 to 89, and no neuron 90",
        "12:1": "There is no layer “12”",
        "attention 5": "There is no layer “attention”",
        "mlp 5": "12 layers match",
        "": "Type a layer and a neuron",
    }.items():
        page.fill("#query", query)
        page.press("#query", "Enter")
        assert answer in page.inner_text("#query-result")
        assert page.inner_text("#layer-heading").startswith("Layer 0")


def test_a_link_can_name_a_neuron(visit: Open, path: Path) -> None:
    opened = visit(path)
    opened.page.evaluate("location.hash = '4:20'")
    opened.until("document.getElementById('neuron-heading').textContent === 'Neuron 4:20'")


# --- facts


@pytest.mark.parametrize("neuron", [0, 33, 89])
def test_the_facts_of_a_neuron(visit: Open, path: Path, inspection: Inspection, neuron: int) -> None:
    page = visit(path).page
    page.fill("#query", f"3:{neuron}")
    page.press("#query", "Enter")
    name = list(inspection.layers)[3]
    place = inspection.layers[name]
    position, node_layer = place.graph, place.position
    facts = summarise_node(
        inspection.graphs[position].graph, inspection.main.ranks[position], node_layer, neuron, top=3
    )
    terms = page.locator("#neuron-facts > dl > dt").all_inner_texts()
    shown = dict(zip(terms, page.locator("#neuron-facts > dl > dd").all_inner_texts(), strict=True))
    assert float(shown["score"]) == pytest.approx(facts.score, rel=1e-3)
    assert shown["place"] == f"{facts.position + 1} of 90"
    for term, value in (
        ("activation", facts.activation),
        ("strength in", facts.in_strength),
        ("strength out", facts.out_strength),
    ):
        assert float(shown[term]) == pytest.approx(value, rel=1e-3)
    for side, edges in ((2, facts.in_edges), (3, facts.out_edges)):
        listed = page.locator(f"#neuron-facts > div:nth-child({side}) dl").inner_text().split("\n")
        words = [word for line in listed for word in [line.strip()] if word]
        assert words == [w for edge in edges for w in (f"node {edge.node}", f"{100 * edge.share:.2f} %")]
    verdicts = summarise_neuron(inspection, name, neuron).verdicts
    cells = page.locator("#neuron .verdicts tbody tr").first.locator("td").all_inner_texts()
    for budget, (state, ratio) in {"local": cells[2:4], "global": cells[5:7]}.items():
        assert state == ("kept" if verdicts[budget].kept else "removed")
        assert float(ratio) == pytest.approx(verdicts[budget].margin, rel=1e-3)
    for budget, at in {"local": cells[4], "global": cells[7]}.items():
        goes = [p for p in range(91) if not masks(inspection, "wpr", budget, p)[name][neuron]]
        assert at == (f"{goes[0]} %" if goes else "> 90 %")


def test_scorers_are_compared(visit: Open, path: Path, inspection: Inspection) -> None:
    opened = visit(path)
    opened.amount(40)
    opened.settle()
    main = masks(inspection, "wpr", "local", 40)
    shown = {
        row[0]: row[1]
        for row in opened.page.eval_on_selector_all(
            "#agreement tbody tr", "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
        )
    }
    assert set(shown) == {"activation", "random", "wpr, isolated"}
    for name in ("activation", "random"):
        other = masks(inspection, name, "local", 40)
        share = share_also_kept(torch.cat(list(main.values())).numpy(), torch.cat(list(other.values())).numpy())
        assert shown[name] == f"{100 * share:.1f} %"


def test_the_table_sorts_and_follows_the_pointer(visit: Open, path: Path, inspection: Inspection) -> None:
    page = visit(path).page
    scores = next(iter(inspection.main.importance.values()))
    activations = inspection.graphs[0].graph.activations[1]
    assert [int(row[0]) for row in rows(page)] == np.argsort(-scores, kind="stable")[:20].tolist()
    page.click("#neurons thead >> text=activation")
    assert [int(row[0]) for row in rows(page)] == np.argsort(activations, kind="stable")[:20].tolist()
    page.click("#neurons thead >> text=activation")
    assert [int(row[0]) for row in rows(page)] == np.argsort(-activations, kind="stable")[:20].tolist()
    assert page.locator("#neurons th[aria-sort=descending]").inner_text().startswith("activation")
    third = rows(page)[2][0]
    page.hover("#neurons tbody tr:nth-child(3)")
    assert page.inner_text("#neuron-heading") == f"Neuron 0:{third}"
    page.click("#page-last")
    assert len(rows(page)) == 90 % 20
    assert "81\N{EN DASH}90 of 90 neurons" in page.inner_text("#page-shown")


# --- download


@pytest.mark.parametrize(("what", "scope"), [("removed", "layer"), ("kept", "model"), ("all", "model")])
def test_the_csv_holds_the_chosen_neurons(
    visit: Open, path: Path, inspection: Inspection, tmp_path: Path, what: str, scope: str
) -> None:
    opened = visit(path)
    page = opened.page
    page.check("[name=budget][value=global]")
    opened.amount(40)
    page.select_option("#layer-choice", "2")
    page.select_option("#download-what", what)
    page.select_option("#download-scope", scope)
    with page.expect_download() as waiting:
        page.click("#download button")
    name = waiting.value.suggested_filename
    assert name.endswith(f"_wpr_global_40pct_{'layer-2' if scope == 'layer' else 'all-layers'}_{what}.csv")
    waiting.value.save_as(tmp_path / name)
    with (tmp_path / name).open(encoding="utf-8", newline="") as file:
        written = list(csv.DictReader(file))
    both = {budget: masks(inspection, "wpr", budget, 40) for budget in ("local", "global")}
    layers = list(inspection.layers)
    chosen = [layers[2]] if scope == "layer" else layers
    keep = both["global"]
    expected = [
        (layer, neuron)
        for layer in chosen
        for neuron, kept in enumerate(keep[layer].tolist())
        if what == "all" or kept == (what == "kept")
    ]
    assert [(row["layer"], int(row["neuron"])) for row in written] == expected
    for row in written:
        layer, neuron = row["layer"], int(row["neuron"])
        assert np.float32(row["score"]) == np.float32(inspection.main.importance[layer][neuron])
        assert int(row["layer_number"]) == layers.index(layer)
        scores = inspection.main.importance[layer]
        assert int(row["place"]) == np.argsort(-scores, kind="stable").tolist().index(neuron) + 1
        for budget, mask in both.items():
            assert row[budget] == ("kept" if mask[layer][neuron] else "removed")
    assert f"{len(expected)}" in page.inner_text("#download-result").replace(",", "")


# --- keyboard, colours and widths


def test_everything_can_be_done_with_the_keyboard(visit: Open, path: Path) -> None:
    opened = visit(path)
    page = opened.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.focus("#amount")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert page.inner_text("#amount-shown") == "33 %"
    assert "33 %" in page.get_attribute("#amount", "aria-valuetext")
    page.focus("#layers [aria-current]")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.inner_text("#layer-heading").startswith("Layer 2")
    assert page.evaluate("document.activeElement.textContent") == "2"
    page.keyboard.press("End")
    assert page.inner_text("#layer-heading").startswith("Layer 11")
    # In the table of neurons: to the next page and back, and select a neuron on the way.
    page.focus("#neurons tbody button[tabindex='0']")
    for _ in range(20):
        page.keyboard.press("ArrowDown")
    assert "21\N{EN DASH}40" in page.inner_text("#page-shown")
    focused = page.evaluate("document.activeElement.textContent")
    assert focused == rows(page)[0][0]
    assert page.inner_text("#neuron-heading") == f"Neuron 11:{focused}"
    page.keyboard.press("Enter")
    assert page.inner_text("#neurons [aria-current]") == focused
    assert page.evaluate("document.activeElement.textContent") == focused
    page.keyboard.press("ArrowUp")
    assert "1\N{EN DASH}20" in page.inner_text("#page-shown")
    page.focus("#neurons thead button")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.dataset.column") == "neuron"
    assert rows(page)[0][0] == "0"
    page.focus("[name=budget]:checked")
    page.keyboard.press("ArrowRight")
    assert page.get_attribute("#count-global", "class") == "chosen"


def test_counts_are_announced_when_the_slider_rests(visit: Open, path: Path) -> None:
    opened = visit(path)
    for percent in range(31, 61):
        opened.amount(percent)
    opened.until("document.getElementById('status').textContent.startsWith('60 %')")
    assert "removes 648 of 1,080 neurons" in opened.page.text_content("#status")
    assert opened.page.get_attribute("#status", "role") == "status"


def test_controls_have_names_and_regions_are_marked(visit: Open, path: Path) -> None:
    page = visit(path).page
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('main button, header button, input, select, .dial button')]
          .filter(e => !(e.labels?.length || e.ariaLabel || e.textContent.trim())).map(e => e.outerHTML)"""
    )
    assert nameless == []
    assert (
        page.locator("main").count()
        == page.locator("body > header").count()
        == page.locator("body > footer").count()
        == 1
    )
    unnamed = page.evaluate(
        "() => [...document.querySelectorAll('section, nav, article, [role=img], [role=region]')]"
        ".filter(e => !(e.ariaLabel || e.getAttribute('aria-labelledby'))).length"
    )
    assert unnamed == 0


CONTRAST = """() => {
  const parse = text => { const v = text.match(/[\\d.]+/g).map(Number); return v.length < 4 ? [...v, 1] : v; };
  const luminance = ([r, g, b]) => {
    const part = v => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour[3] === 1) return colour;
    }
    return [255, 255, 255, 1];
  };
  const found = [];
  for (const e of document.querySelectorAll('body *:not(script, option, .plot *, .unseen)')) {
    const own = [...e.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    if (!own || !e.checkVisibility() || e.matches(':disabled, .skip')) continue;
    const [a, b] = [luminance(parse(getComputedStyle(e).color)), luminance(behind(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push(`${ratio.toFixed(2)} ${e.tagName} ${e.textContent.slice(0, 40)}`);
  }
  for (const e of document.querySelectorAll('.plot text')) {
    if (!e.textContent.trim()) continue;
    const [a, b] = [luminance(parse(getComputedStyle(e).fill)), luminance(behind(e.closest('.plot')))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push(`${ratio.toFixed(2)} plot ${e.textContent.slice(0, 40)}`);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_follows_the_colour_scheme_and_can_be_read(visit: Open, path: Path, scheme: str) -> None:
    # A transition from the colours of the other scheme may still be under way.
    page = visit(path, color_scheme=scheme, reduced_motion="reduce").page
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    assert page.evaluate(CONTRAST) == []


def test_the_page_and_its_charts_switch_between_light_and_dark(visit: Open, path: Path) -> None:
    # Transitions would show colours that belong to neither scheme.
    opened = visit(path, color_scheme="light", reduced_motion="reduce")
    page = opened.page
    colours = """() => [
      getComputedStyle(document.body).backgroundColor,
      getComputedStyle(document.querySelector('#distribution-plot .tick')).fill,
    ]"""
    light = page.evaluate(colours)
    page.click("#theme")
    opened.settle()
    dark = page.evaluate(colours)
    assert all(one != other for one, other in zip(light, dark, strict=True))
    assert page.get_attribute("#theme", "aria-pressed") == "true"
    assert page.evaluate(CONTRAST) == []
    page.click("#theme")
    opened.settle()
    assert page.evaluate(colours) == light


@pytest.mark.parametrize("width", [1280, 800, 400])
def test_the_page_is_never_wider_than_the_window(visit: Open, path: Path, width: int) -> None:
    page = visit(path, viewport={"width": width, "height": 800}).page
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_charts_follow_the_width_of_the_window(visit: Open, path: Path) -> None:
    opened = visit(path)
    page = opened.page
    boxes = (
        "() => [...document.querySelectorAll('.plot')].map(box => "
        "[box.clientWidth, box.querySelector('svg').clientWidth, box.querySelector('svg').clientHeight])"
    )
    before = page.evaluate(boxes)
    assert page.locator("#overview-plot .effective").count() == 12
    page.set_viewport_size({"width": 400, "height": 700})
    fits = "Math.abs(box.clientWidth - box.querySelector('svg').clientWidth) <= 1"
    opened.until(f"[...document.querySelectorAll('.plot')].every(box => {fits})")
    narrow = page.evaluate(boxes)
    assert all(one[0] != other[0] for one, other in zip(before, narrow, strict=True))
    # Heights depend on the content and not on the window. A narrow overview has no bars.
    assert [height for _, _, height in narrow] == [height for _, _, height in before]
    assert page.locator("#overview-plot .effective").count() == 0


def test_nothing_moves_if_the_reader_prefers_reduced_motion(visit: Open, path: Path) -> None:
    page = visit(path, reduced_motion="reduce").page
    moving = (
        "() => [...document.querySelectorAll('button')]"
        ".filter(e => parseFloat(getComputedStyle(e).transitionDuration) > 0).length"
    )
    assert page.evaluate(moving) == 0


# --- names from a model


def test_hostile_names_are_shown_and_do_nothing(visit: Open, tmp_path: Path) -> None:
    opened = visit(write_page(hostile_inspection(), tmp_path / "index.html"))
    page = opened.page
    assert page.inner_text("h1").split() == HOSTILE.split()
    assert page.locator("script").count() == 3
    assert HOSTILE.split()[0] in page.inner_text("#layer-heading")
    page.fill("#query", "0:3")
    page.press("#query", "Enter")
    with page.expect_download() as waiting:
        page.click("#download button")
    waiting.value.save_as(tmp_path / "hostile.csv")
    with (tmp_path / "hostile.csv").open(encoding="utf-8", newline="") as file:
        assert {row["layer"] for row in csv.DictReader(file)} == {f"'{HOSTILE}"}  # no formula


@pytest.mark.parametrize(
    "harm",
    [
        "const script = document.createElement('script'); script.textContent = 'window.harm = 1'; document.body.append(script);",
        "document.body.insertAdjacentHTML('beforeend', '<img src=\"data:,\" onerror=\"window.harm = 1\">');",
        "document.body.insertAdjacentHTML('beforeend', '<iframe srcdoc=\"<script>parent.harm = 1</script>\"></iframe>');",
        "fetch('https://example.org').catch(() => {});",
    ],
)
def test_the_policy_of_the_page_refuses_what_gets_into_it(visit: Open, path: Path, harm: str) -> None:
    opened = visit(path)
    opened.page.evaluate(f"() => {{ {harm} }}")
    opened.page.wait_for_timeout(300)
    assert opened.page.evaluate("window.harm") is None
    assert any("Content Security Policy" in complaint for complaint in opened.complaints)
    opened.complaints.clear()
    opened.requests.clear()


# --- mixtures of experts


def experts_of(page: Any) -> list[tuple[str, str, str]]:
    return [(row[0], row[1], row[5]) for row in rows(page, "experts-table")]


@pytest.mark.parametrize("targets", ["neurons", "experts", "neurons,experts"])
def test_a_mixture_shows_its_experts_and_an_expert_its_neurons(visit: Open, tmp_path: Path, targets: str) -> None:
    pipeline = IsolatedFFNPipeline(tiny_mixture("qwen2_moe"), None, targets=targets, calibration=token_ids())
    inspection = inspect_model(pipeline, {"wpr": WeightedPageRankScorer()}, "wpr")
    name = list(inspection.layers)[1]
    seen = visit(write_page(inspection, tmp_path / "index.html"))
    page = seen.page
    page.click("#layers tbody tr:nth-child(2)")
    wanted = []
    for each in summarise_experts(inspection, name):
        gone = each.n_neurons - each.kept["local"]
        fate = "removed" if gone == each.n_neurons else f"\N{MINUS SIGN}{gone}" if gone else "kept"
        wanted.append((each.label(name) if each.routed else "shared", f"{100 * each.tokens:.1f} %", fate))
    assert experts_of(page) == wanted
    page.click("#experts-table thead button[data-column=tokens]")
    assert [row[1] for row in experts_of(page)] == [
        row[1] for row in sorted(wanted, key=lambda row: -float(row[1].split()[0]))
    ]
    page.click("#experts-table [data-expert='3']")
    assert page.inner_text("#neurons-heading") == "Neurons of expert 3"
    assert {int(row[0]) for row in rows(page)} <= set(range(72, 96))
    assert {row[1] for row in rows(page)} == {"3"}
    assert "of 24 neurons" in page.inner_text("#page-shown")
    page.click("#all-experts")
    assert "of 232 neurons" in page.inner_text("#page-shown")
    page.fill("#query", "1.5:7")
    page.press("#query", "Enter")
    assert page.inner_text("#neuron-heading") == "Neuron 1:127, neuron 7 of expert 5"
    seen.settle()
    crosses = page.get_attribute("#experts-plot .cross:not(.under)", "d")
    masks = inspection.main.masks["local"]
    removed_experts = [part for part, width in masks.widths.items() if width == 0]
    assert crosses.count("M") == 2 * len(removed_experts)
    assert page.is_disabled("#amount") == (targets == "neurons,experts")


def test_an_attention_shows_its_groups_of_heads(visit: Open, tmp_path: Path) -> None:
    model = tiny_llama(hidden_size=64, num_attention_heads=8, num_key_value_heads=4)
    pipeline = IsolatedFFNPipeline(model, None, targets="heads", calibration=token_ids())
    inspection = inspect_model(pipeline, {"wpr": WeightedPageRankScorer(), "activation": ActivationScorer()}, "wpr")
    name = next(iter(inspection.layers))
    seen = visit(write_page(inspection, tmp_path / "index.html"))
    page = seen.page
    scores, keep = inspection.main.importance[name], inspection.main.keep["local"][name].reshape(4, -1)
    assert [(row[0], row[1], row[3]) for row in rows(page, "experts-table")] == [
        (str(k), f"{100 * scores.reshape(4, -1)[k].sum():.2f} %", "kept" if keep[k].all() else "removed")
        for k in range(4)
    ]
    # Groups are removed by their sums, and so neurons not by their scores; a place is by score all the same.
    assert [int(row[0]) for row in rows(page)[:5]] == np.argsort(-scores, kind="stable")[:5].tolist()
    page.click("#experts-table [data-expert='2']")
    assert page.inner_text("#neurons-heading") == "Neurons of group 2"
    assert {int(row[0]) for row in rows(page)} == set(range(16, 24))
    page.fill("#query", "0.1:3")
    page.press("#query", "Enter")
    assert page.inner_text("#neuron-heading") == "Neuron 0:11, neuron 3 of group 1"
    found = summarise_neuron(inspection, name, 11).verdicts["local"]
    shown = page.inner_text("#neuron-facts .verdicts tbody tr.chosen").split("\t")
    assert found.among == "attention"
    assert (shown[3], float(shown[4])) == ("kept" if found.kept else "removed", pytest.approx(found.margin, rel=1e-3))
    seen.settle()
    crosses = page.get_attribute("#experts-plot .cross:not(.under)", "d")
    assert crosses.count("M") == 2 * len(inspection.layers)
    assert page.inner_text("#experts-figure h3") == "Groups of heads of all attentions"
    text = page.inner_text("body").lower()
    assert "expert" not in text
    assert "mixture" not in text
    assert page.locator("#multiple").is_hidden()
    assert seen.complaints == []
