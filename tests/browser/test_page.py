"""The page in a browser: what it shows is what the library computes, with the mouse and without."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from graphs.analysis.measures import kept_overlap
from graphs.analysis.node_summary import summarise_node
from llmrank import ChainedFFNPipeline
from llmrank.inspection.inspection import Inspection, inspect_model
from llmrank.inspection.page import write_page
from llmrank.inspection.summary import margin, neuron_facts
from llmrank.prune import GlobalPruner, LayerRecord, LocalPruner
from llmrank.prune.masks import Masks
from llmrank.score import ActivationScorer, RandomScorer, WeightedPageRankScorer
from tests.llmrank.inspection.test_page import HOSTILE, hostile_inspection
from tests.llmrank.tiny_models import tiny_llama, token_ids

pytest.importorskip("plotly", reason="the page draws with plotly")
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
    layers = [LayerRecord(name, torch.from_numpy(v)) for name, v in inspection.scored[scorer].importance.items()]
    budgets = {"local": LocalPruner, "global": GlobalPruner}
    return budgets[budget](percent / 100, multiple_of=multiple).prune(layers)


def removed(mask: torch.Tensor) -> list[int]:
    return (~mask).nonzero()[:, 0].tolist()


def rows(page: Any, table: str = "neurons") -> list[list[str]]:
    return page.eval_on_selector_all(
        f"#{table} tbody tr", "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    )


def listed_as(page: Any, state: str) -> list[int]:
    """All neurons of the open layer that a filter of the table leaves, from every page of it."""
    page.select_option("#filter", state)
    listed = [int(row[0]) for row in rows(page)]
    while page.is_enabled("#page-next"):
        page.click("#page-next")
        listed += [int(row[0]) for row in rows(page)]
    page.select_option("#filter", "all")
    return sorted(listed)


# --- it opens


def test_it_opens_without_a_word_and_says_what_it_shows(visit: Open, path: Path, inspection: Inspection) -> None:
    page = visit(path).page
    assert page.title() == inspection.source
    text = page.inner_text("#provenance")
    for part in ("chained", "wpr, local, 30 %", "1,080 in 12 layers", "sequences"):
        assert part in text
    assert page.locator("main .js-plotly-plot").count() == 3
    assert page.locator("#notes").is_hidden()
    assert page.locator("#scorer option").all_inner_texts() == ["wpr", "activation", "random", "wpr, isolated"]


def test_plots_draw_what_there_is(visit: Open, path: Path, inspection: Inspection) -> None:
    page = visit(path).page
    heat = page.evaluate("document.getElementById('overview-plot').data[0].z.map(row => [...row])")
    for row, scores in zip(heat, inspection.main.importance.values(), strict=True):
        # 90 neurons in 100 buckets: the first bucket is the highest neuron.
        assert 10 ** row[0] == pytest.approx(90 * scores.max(), rel=1e-5)
        assert 10 ** row[-1] == pytest.approx(90 * scores.min(), rel=1e-5)
    bars = page.evaluate("document.getElementById('distribution-plot').data.map(bar => [bar.name, bar.y])")
    assert {name: sum(heights) for name, heights in bars} == {"removed": 27, "kept": 63}
    nodes = page.evaluate("document.getElementById('subgraph-plot').data.find(trace => trace.customdata)?.customdata")
    scores = next(iter(inspection.main.importance.values()))
    assert nodes == np.argsort(-scores, kind="stable")[:8].tolist()
    held = float(re.findall(r"hold ([\d.]+) %", page.inner_text("#subgraph-caption"))[0])
    assert held == pytest.approx(100 * np.sort(scores)[-8:].sum(), abs=0.06)


POINT = """([id, x, y]) => {
  const plot = document.getElementById(id);
  const { xaxis, yaxis } = plot._fullLayout;
  const box = plot.getBoundingClientRect();
  return [box.left + xaxis._offset + xaxis.l2p(x), box.top + yaxis._offset + yaxis.l2p(y)];
}"""


def test_clicks_on_the_plots_open_and_choose(visit: Open, path: Path, inspection: Inspection) -> None:
    opened = visit(path, viewport={"width": 1280, "height": 1600})
    page = opened.page

    def click(plot: str, x: float, y: float) -> None:
        opened.settle()
        page.mouse.move(5, 5)
        opened.until(f"!document.querySelector('#{plot} .hovertext')")
        page.mouse.move(*page.evaluate(POINT, [plot, x, y]))
        # A plot knows what is clicked from what is hovered.
        opened.until(f"document.querySelector('#{plot} .hovertext')")
        page.mouse.down()
        page.mouse.up()

    for layer, x in ((7, 20), (3, 95)):  # among the kept, and under the veil of the removed
        click("overview-plot", x, layer)
        opened.until(f"document.getElementById('layer-choice').value === '{layer}'")
    second = np.argsort(-list(inspection.main.importance.values())[3], kind="stable")[1]
    click("subgraph-plot", 1, 1 - 1 / 7)
    opened.until(f"document.getElementById('neuron-heading').textContent === 'Neuron 3:{second}'")


# --- budgets


@pytest.mark.parametrize("scorer", ["wpr", "activation", "random"])
@pytest.mark.parametrize("budget", ["local", "global"])
def test_the_slider_shows_what_the_library_computes(
    visit: Open, path: Path, inspection: Inspection, scorer: str, budget: str
) -> None:
    opened = visit(path)
    page = opened.page
    page.select_option("#scorer", scorer)
    page.check(f"[name=budget][value={budget}]")
    page.select_option("#layer-choice", "5")
    name = list(inspection.places())[5]
    for percent in (0, 1, 5, 30, 35, 50, 77, 90):
        opened.amount(percent)
        for each in ("local", "global"):
            expected = masks(inspection, scorer, each, percent)
            assert opened.number(f"#count-{each} .removed") == expected.size - expected.kept
            assert opened.number(f"#count-{each} .kept") == expected.kept
            column = 2 if each == "local" else 3
            shown = [int(row[column].replace("\N{MINUS SIGN}", "").replace(",", "")) for row in rows(page, "layers")]
            assert shown == [len(mask) - int(mask.sum()) for mask in expected.values()]
        # Which neurons of the open layer go, not only how many.
        assert listed_as(page, "removed") == removed(masks(inspection, scorer, budget, percent)[name])


def test_the_answer_comes_at_once(visit: Open, path: Path) -> None:
    """Within the very event: no timer, no frame in between."""
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


def test_the_amount_asked_for_is_the_start_and_can_be_had_back(
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
    assert page.is_disabled("#as-asked")
    opened.amount(50)
    assert opened.number("#count-global .removed") == 40
    page.click("#as-asked")
    assert opened.number("#count-global .removed") == 27
    assert page.inner_text("#amount-shown") == "33.3 %"


def test_what_the_library_refuses_the_page_refuses(visit: Open, tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    pipeline = ChainedFFNPipeline(model, None, calibration=torch.rand(20, 4))
    tiny = inspect_model(pipeline, {"activation": ActivationScorer()}, "activation")
    opened = visit(write_page(tiny, tmp_path / "index.html"))
    opened.amount(90)
    assert "refused: 0 would keep 0 of 3 neurons" in opened.page.inner_text("#count-local")
    assert "refused" in opened.page.inner_text("#count-global")
    assert opened.number("#layers tbody td:nth-child(3)") == 0


@pytest.mark.parametrize("multiple", [8, 64, 128])
def test_widths_are_rounded_as_the_library_rounds_them(
    visit: Open, path: Path, inspection: Inspection, multiple: int
) -> None:
    opened = visit(path)
    page = opened.page
    page.select_option("#multiple", str(multiple))
    page.select_option("#layer-choice", "5")
    name = list(inspection.places())[5]
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
    # The facts of a neuron are rounded too.
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


def test_the_settings_asked_for_are_the_start(visit: Open, tmp_path: Path) -> None:
    pruner = GlobalPruner(0.4, min_keep=5, multiple_of=6, normalize="mean")
    pipeline = ChainedFFNPipeline(tiny_llama(), None, pruner=pruner, calibration=token_ids())
    seen = inspect_model(pipeline, {"wpr": WeightedPageRankScorer()}, "wpr", "global")
    opened = visit(write_page(seen, tmp_path / "index.html"))
    page = opened.page
    assert page.locator("#multiple option:checked").inner_text() == "multiples of 6"
    assert page.locator("#notes").is_hidden()
    name = next(iter(seen.places()))
    for budget, kept in seen.main.masks.items():
        page.check(f"[name=budget][value={budget}]")
        assert opened.number(f"#count-{budget} .kept") == kept.kept
        assert listed_as(page, "removed") == removed(kept[name])
    page.select_option("#multiple", "1")
    records = [LayerRecord(layer, torch.from_numpy(values)) for layer, values in seen.main.importance.items()]
    plain = GlobalPruner(0.4, min_keep=5, normalize="mean").prune(records)
    assert opened.number("#count-global .kept") == plain.kept


def test_the_arithmetic_is_pythons(chromium: Any) -> None:
    """Every count of every width up to 600, and the widths of real models, halves included."""
    script = (files("llmrank.inspection") / "templates" / "exact.js").read_text(encoding="utf-8")
    page = chromium.new_page()
    sizes = [*range(1, 601), 1536, 11008, 14336, 28672]
    counts = page.evaluate(
        f"""sizes => {{ {script}
          return sizes.map(size => Array.from({{ length: 91 }}, (_, percent) => [
            localCount({{}}, {{ percent }}, {{ size }}), globalCount({{ total: size }}, {{ percent }})])); }}""",
        sizes,
    )
    for size, by_percent in zip(sizes, counts, strict=True):
        assert by_percent == [[round(p / 100 * size), -(-p * size // 100)] for p in range(91)]
    page.close()


# --- finding


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


def test_search_finds(visit: Open, path: Path) -> None:
    page = visit(path).page
    for query, found in FOUND.items():
        # From the first layer, sorted by place: what is found has to be brought into view.
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


def test_search_says_what_it_did_not_find(visit: Open, path: Path) -> None:
    page = visit(path).page
    for query, answer in {
        "3:90": "has neurons 0 to 89; there is no 90",
        "12:1": "No layer “12”",
        "attention 5": "No layer “attention”",
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
    name = list(inspection.places())[3]
    position, node_layer = inspection.places()[name]
    facts = summarise_node(
        inspection.graphs[position].graph, inspection.main.ranks[position], node_layer, neuron, top=3
    )
    terms = page.locator("#neuron-facts > dl > dt").all_inner_texts()
    shown = dict(zip(terms, page.locator("#neuron-facts > dl > dd").all_inner_texts(), strict=True))
    assert float(shown["score"]) == pytest.approx(facts.score, rel=1e-3)
    assert shown["place"] == f"{facts.position + 1} of 90"
    assert shown["percentile"] == f"{100 * facts.percentile:.2f} %"
    for term, value in (
        ("activation", facts.activation),
        ("strength in", facts.in_strength),
        ("strength out", facts.out_strength),
    ):
        assert float(shown[term]) == pytest.approx(value, rel=1e-3)
    for side, edges in ((2, facts.in_edges), (3, facts.out_edges)):
        listed = page.locator(f"#neuron-facts > div:nth-child({side}) dl").inner_text().split("\n")
        words = [word for line in listed for word in [line.strip()] if word]
        assert words == [w for edge in edges for w in (f"node {edge.node}", f"{100 * edge.carried:.2f} %")]
    verdicts = neuron_facts(inspection, name, neuron).verdicts
    cells = page.locator("#neuron .verdicts tbody tr").first.locator("td").all_inner_texts()
    for budget, (state, ratio) in {"local": cells[2:4], "global": cells[5:7]}.items():
        assert state == ("kept" if verdicts[budget].kept else "removed")
        assert float(ratio) == pytest.approx(verdicts[budget].ratio, rel=1e-3)
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
        share = kept_overlap(torch.cat(list(main.values())).numpy(), torch.cat(list(other.values())).numpy())
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
def test_the_csv_holds_the_set(
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
    layers = list(inspection.places())
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
        for budget, mask in both.items():
            assert row[budget] == ("kept" if mask[layer][neuron] else "removed")
    assert f"{len(expected)}" in page.inner_text("#download-result").replace(",", "")


# --- without a mouse, and in other light


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
    # The table of neurons: into the next page and back, choosing on the way.
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


def test_counts_are_spoken_when_the_slider_rests(visit: Open, path: Path) -> None:
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
  for (const e of document.querySelectorAll('body *:not(script, option, .js-plotly-plot *, .unseen)')) {
    const own = [...e.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    if (!own || !e.checkVisibility() || e.matches(':disabled, .skip')) continue;
    const [a, b] = [luminance(parse(getComputedStyle(e).color)), luminance(behind(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push(`${ratio.toFixed(2)} ${e.tagName} ${e.textContent.slice(0, 40)}`);
  }
  for (const e of document.querySelectorAll('.js-plotly-plot text')) {
    if (!e.textContent.trim()) continue;
    const [a, b] = [luminance(parse(getComputedStyle(e).fill)), luminance(behind(e.closest('.js-plotly-plot')))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push(`${ratio.toFixed(2)} plot ${e.textContent.slice(0, 40)}`);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_follows_the_colour_scheme_and_can_be_read(visit: Open, path: Path, scheme: str) -> None:
    page = visit(path, color_scheme=scheme).page
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    assert page.evaluate(CONTRAST) == []


def test_light_and_dark_switch_and_the_plots_with_them(visit: Open, path: Path) -> None:
    # Without transitions: colours in the middle of one belong to neither scheme.
    opened = visit(path, color_scheme="light", reduced_motion="reduce")
    page = opened.page
    colours = """() => [
      getComputedStyle(document.body).backgroundColor,
      getComputedStyle(document.querySelector('#distribution-plot .xtick text')).fill,
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
def test_nothing_sticks_out_sideways(visit: Open, path: Path, width: int) -> None:
    page = visit(path, viewport={"width": width, "height": 800}).page
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_plots_keep_to_their_boxes_when_the_window_changes(visit: Open, path: Path) -> None:
    opened = visit(path)
    page = opened.page
    boxes = (
        "() => [...document.querySelectorAll('.plot')].map(box => "
        "[box.clientWidth, box.querySelector('.main-svg').clientWidth, box.querySelector('.main-svg').clientHeight])"
    )
    before = page.evaluate(boxes)
    assert page.evaluate("document.getElementById('overview-plot').data.length") == 5
    page.set_viewport_size({"width": 400, "height": 700})
    fits = "Math.abs(box.clientWidth - box.querySelector('.main-svg').clientWidth) <= 1"
    opened.until(f"[...document.querySelectorAll('.plot')].every(box => {fits})")
    narrow = page.evaluate(boxes)
    assert all(one[0] != other[0] for one, other in zip(before, narrow, strict=True))
    # Heights follow from the content, not from the window; and a narrow overview leaves out its bars.
    assert [height for _, _, height in narrow] == [height for _, _, height in before]
    assert page.evaluate("document.getElementById('overview-plot').data.length") == 4


def test_motion_is_only_for_those_who_want_it(visit: Open, path: Path) -> None:
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
    assert page.locator("script").count() == 4
    assert HOSTILE.split()[0] in page.inner_text("#layer-heading")
    page.fill("#query", "0:3")
    page.press("#query", "Enter")
    with page.expect_download() as waiting:
        page.click("#download button")
    waiting.value.save_as(tmp_path / "hostile.csv")
    with (tmp_path / "hostile.csv").open(encoding="utf-8", newline="") as file:
        assert {row["layer"] for row in csv.DictReader(file)} == {HOSTILE}
