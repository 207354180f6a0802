"""The page: it holds the results of the pruners and the facts of the graph, and no name can become markup."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections import OrderedDict
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from torch import nn

from graphs import GraphError
from graphs.analysis.node_summary import summarise_node
from graphs.draw.colours import COLOUR_MAP
from llmrank.errors import OptionError
from llmrank.inspection.inspect_model import Inspection, inspect_model
from llmrank.inspection.page import SCRIPTS, payload, render, write_page
from llmrank.prune import BasePruner, GlobalPruner, LayerRecord, LocalPruner
from llmrank.score import ActivationScorer, RandomScorer, WeightedPageRankScorer
from tests.llmrank.plain_pipelines import ChainedFFNPipeline, IsolatedFFNPipeline
from tests.llmrank.tiny_models import STRUCTURE, features, tiny_llama, tiny_t5, token_ids

TOPOLOGIES = {"chained": ChainedFFNPipeline, "isolated": IsolatedFFNPipeline}


def inspected(
    topology: str = "chained", pruner: BasePruner | None = None, model: Any = None, budget: str = "local"
) -> Inspection:
    scorers = {"wpr": WeightedPageRankScorer(), "activation": ActivationScorer(), "random": RandomScorer(seed=1)}
    pipeline = TOPOLOGIES[topology](model or tiny_llama(), None, pruner=pruner, calibration=token_ids())
    return inspect_model(pipeline, scorers, "wpr", budget)


def array(entry: dict[str, str]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(entry["data"]), np.dtype(entry["dtype"]).newbyteorder("<"))


def split(content: dict[str, Any], entry: dict[str, str]) -> dict[str, np.ndarray]:
    """Split an array of all neurons by layer."""
    sizes = [layer["size"] for layer in content["layers"]]
    values = array(entry)
    assert len(values) == sum(sizes)
    parts = np.split(values, np.cumsum(sizes)[:-1])
    return {layer["name"]: part for layer, part in zip(content["layers"], parts, strict=True)}


def records(importance: dict[str, Any], *, explicit: bool = False) -> list[LayerRecord]:
    return [
        LayerRecord(name, torch.as_tensor(values, dtype=torch.float64), explicit=explicit)
        for name, values in importance.items()
    ]


def removals(content: dict[str, Any], table: dict[str, str]) -> np.ndarray:
    """Return the numbers of removed neurons by multiple, amount and layer."""
    shape = (len(content["multiples"]), len(content["amounts"]), len(content["layers"]))
    return array(table).reshape(shape)


# --- what is removed


@pytest.mark.slow
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_the_page_holds_the_masks_of_every_amount_and_multiple(topology: str) -> None:
    inspection = inspected(topology, LocalPruner(0.3, multiple_of=6))
    content = payload(inspection)
    other = "isolated" if topology == "chained" else "chained"
    assert list(content["scorers"]) == ["wpr", "activation", "random", f"wpr, {other}"]
    assert content["amounts"] == [f"{percent} %" for percent in range(91)]
    assert content["multiples"] == ("auto", 1, 6, 8, 64, 128)
    assert not any(content["refusals"]["local"] + content["refusals"]["global"])
    for name, entry in content["scorers"].items():
        result = inspection.in_other_topology if "," in name else inspection.results[name]
        layers = records(dict(result.importance))
        positions = split(content, entry["positions"]["local"])
        tables = {LocalPruner: removals(content, content["removed"]), GlobalPruner: removals(content, entry["removed"])}
        for pruner, table in tables.items():
            for multiple, by_amount in zip(content["multiples"], table, strict=True):
                for percent, counts in enumerate(by_amount):
                    masks = pruner(percent / 100, multiple_of=multiple).prune(layers)
                    for (layer, keep), count in zip(masks.items(), counts, strict=True):
                        assert (positions[layer] >= count).tolist() == keep.tolist()


@pytest.mark.parametrize("pruner", [LocalPruner, GlobalPruner])
def test_the_page_refuses_what_the_pruner_refuses(pruner: type[LocalPruner] | type[GlobalPruner]) -> None:
    inspection = inspected(pruner=pruner(0.3, min_keep=15))
    content = payload(inspection)
    layers = records(dict(inspection.main.importance))
    budget = "local" if pruner is LocalPruner else "global"
    table = content["removed"] if budget == "local" else content["scorers"]["wpr"]["removed"]
    counts = removals(content, table)
    for percent, reason in enumerate(content["refusals"][budget]):
        if reason:
            with pytest.raises(OptionError, match=re.escape(reason)):
                pruner(percent / 100, min_keep=15).prune(layers)
            assert not counts[:, percent].any()
        else:
            pruner(percent / 100, min_keep=15).prune(layers)
    assert sum(map(bool, content["refusals"][budget])) == {"local": 27, "global": 28}[budget]


# --- facts


def test_facts_equal_those_of_the_graph() -> None:
    inspection = inspected("chained")
    content = payload(inspection)
    assert content["graph"] == {"nodes": 16 * 3 + 40 * 2, "edges": 4 * 16 * 40}
    facts = {name: split(content, entry) for name, entry in content["facts"].items()}
    edges = {
        key: array(content["edges"][key]).reshape(-1, 3) for key in ("in_nodes", "in_shares", "out_nodes", "out_shares")
    }
    assert content["edges"]["held"] == [40, 40]
    assert content["edges"]["neurons"] is None
    scorer = content["scorers"]["wpr"]
    start = 0
    for layer in content["layers"]:
        name, size = layer["name"], layer["size"]
        place = inspection.layers[name]
        position, node_layer = place.graph, place.position
        graph, rank = inspection.graphs[position].graph, inspection.main.ranks[position]
        assert layer["in"] == {"name": graph.names[node_layer - 1], "size": 16}
        assert layer["out"] == {"name": graph.names[node_layer + 1], "size": 16}
        for neuron in (0, 7, 39):
            one = summarise_node(graph, rank, node_layer, neuron, top=3)
            assert split(content, scorer["scores"])[name][neuron] == np.float32(one.score)
            assert size - 1 - int(split(content, scorer["positions"]["local"])[name][neuron]) == one.position
            assert facts["activation"][name][neuron] == np.float32(one.activation)
            assert facts["in_strength"][name][neuron] == pytest.approx(one.in_strength, rel=1e-6)
            assert facts["out_strength"][name][neuron] == pytest.approx(one.out_strength, rel=1e-6)
            for side, expected in (("in", one.in_edges), ("out", one.out_edges)):
                assert edges[f"{side}_nodes"][start + neuron].tolist() == [edge.node for edge in expected]
                shares = edges[f"{side}_shares"][start + neuron]
                np.testing.assert_allclose(shares, [edge.share for edge in expected], rtol=1e-6)
        start += size


def test_layers_at_the_end_of_a_graph_have_no_neighbour() -> None:
    """With a structure_dict the last listed Linear is prunable, and nothing follows it."""
    pipeline = ChainedFFNPipeline(tiny_llama(), None, STRUCTURE, calibration=token_ids())
    content = payload(inspect_model(pipeline, {"activation": ActivationScorer()}, "activation"))
    assert [layer["size"] for layer in content["layers"]] == [40, 16, 40, 16]
    assert content["layers"][-1]["out"] is None
    # The last 16 rows have no edge that leaves.
    assert not array(content["edges"]["out_shares"]).reshape(-1, 3)[-16:].any()
    # Isolated graphs of named Linears are pruned one by one, and the page compares all layers: it says so.
    assert ["prunes each graph separately" in note for note in content["notes"]] == [True]


def test_stacks_of_different_widths() -> None:
    content = payload(inspected("chained", model=tiny_t5()))
    assert len({layer["name"] for layer in content["layers"]}) == 4
    assert not content["notes"]


@pytest.mark.parametrize(
    ("amount", "index", "label", "slider"),
    [
        (0.3, 30, "30 %", 30),
        (0.07, 7, "7 %", 7),
        (0.333, 91, "33.3 %", 33),
        (0.95, 91, "95 %", 90),
        (5, 91, "5 neurons", 12),
        (1, 91, "1 neuron", 2),
        (0, 91, "0 neurons", 0),
    ],
)
def test_the_amount_of_the_inspection(amount: float, index: int, label: str, slider: int) -> None:
    inspection = inspected(pruner=GlobalPruner(amount))
    content = payload(inspection)
    assert content["inspected"] == {"amount": index, "multiple": 0, "slider": slider}
    assert content["amounts"][index] == label
    assert len(content["amounts"]) == max(91, index + 1)
    assert not content["notes"]
    tables = {"local": content["removed"], "global": content["scorers"]["wpr"]["removed"]}
    for budget, table in tables.items():
        for keep, count in zip(inspection.main.masks[budget].values(), removals(content, table)[0, index], strict=True):
            assert 40 - count == int(keep.sum())


def test_a_number_of_neurons_counts_for_each_layer_if_the_budget_is_local() -> None:
    sliders = [
        payload(inspected(pruner=LocalPruner(5), budget=budget))["inspected"]["slider"]
        for budget in ("local", "global")
    ]
    assert sliders == [round(100 * 5 / 40), round(100 * 5 / 80)]


def test_the_page_keeps_the_neurons_of_the_inspection_for_all_settings() -> None:
    for pruner in (
        LocalPruner(0.3, multiple_of=16),
        GlobalPruner(0.3, multiple_of=16),
        GlobalPruner(0.3, normalize="mean"),
        GlobalPruner(0.9, min_keep=4),
    ):
        content = payload(inspected(pruner=pruner))
        assert not content["notes"]
        assert content["multiples"][content["inspected"]["multiple"]] == pruner.multiple_of
        assert content["min_keep"] == pruner.min_keep
        assert content["normalize"] == getattr(pruner, "normalize", "auto")


def test_an_amount_that_only_one_budget_accepts() -> None:
    inspection = inspected(pruner=GlobalPruner(60), budget="global")
    content = payload(inspection)
    assert not content["notes"]
    assert content["amounts"][-1] == "60 neurons"
    assert "would keep 0 of 40 neurons" in content["refusals"]["local"][-1]
    assert not content["refusals"]["global"][-1]
    assert removals(content, content["removed"])[:, -1].tolist() == [[0, 0]] * 5
    assert removals(content, content["scorers"]["wpr"]["removed"])[0, -1].sum() == 60


# --- size


def test_a_note_says_what_was_left_out_of_the_page() -> None:
    model = tiny_llama(intermediate_size=400)
    inspection = inspected(model=model)
    whole = payload(inspection)
    assert not whole["notes"]

    def size(content: dict[str, Any]) -> int:
        return len(json.dumps({key: content[key] for key in ("removed", "scorers", "facts", "edges")}))

    held = []
    for limit in (size(whole), 90_000, 70_000, 0):
        content = payload(inspection, data_limit=limit)
        names = list(content["scorers"])
        assert names == list(whole["scorers"])[: len(names)]
        left_out = [name for name in whole["scorers"] if name not in names]
        assert all(any(name in note for note in content["notes"]) for name in left_out)
        assert limit == 0 or size(content) <= limit * 1.05 + 2_000
        held.append((len(names), content["edges"]["held"][0]))
    assert held[0] == (4, 400)
    assert held[-1] == (1, 64)
    assert held == sorted(held, reverse=True)
    # The indices of the neurons that have edges count too.
    wide = inspected(model=tiny_llama(intermediate_size=6_000))
    assert size(payload(wide, data_limit=1_000_000)) <= 1_010_000
    # The edges that are left are those of the highest neurons.
    content = payload(inspection, data_limit=0)
    neurons = array(content["edges"]["neurons"]).reshape(2, 64)
    for name, chosen in zip(inspection.layers, neurons, strict=True):
        scores = inspection.main.importance[name]
        assert set(chosen.tolist()) == set(np.argsort(-scores, kind="stable")[:64].tolist())
        assert chosen.tolist() == sorted(chosen.tolist())
    assert "64 highest neurons" in content["notes"][1]


# --- the page itself


class Elements(HTMLParser):
    """The scripts, styles and attributes that a parser finds in a page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.title = self.style = ""
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)
        elif self._inside == "title":
            self.title += data
        elif self._inside == "style":
            self.style += data


HOSTILE = "=</script><script>alert(1)</script><!-- \" ' & \u2028 日本 ${x}"


def hostile_inspection() -> Inspection:
    layers = OrderedDict([(HOSTILE.replace(".", ""), nn.Linear(6, 30)), ("act", nn.ReLU()), ("last", nn.Linear(30, 4))])
    model = nn.Sequential(layers)
    model.name_or_path = HOSTILE
    pipeline = IsolatedFFNPipeline(model, None, calibration=features(50, 6))
    return inspect_model(pipeline, {"activation": ActivationScorer()}, "activation")


@pytest.fixture(scope="module")
def hostile() -> tuple[dict[str, Any], Elements]:
    content = payload(hostile_inspection())
    return content, Elements(render(content))


def test_names_are_only_data(hostile: tuple[dict[str, Any], Elements]) -> None:
    content, page = hostile
    assert content["source"] == HOSTILE
    assert content["layers"][0]["name"] == HOSTILE
    assert len(page.scripts) == 3
    (data,) = [text for attributes, text in page.scripts if attributes.get("type") == "application/json"]
    assert json.loads(data) == json.loads(json.dumps(content))
    assert page.title == HOSTILE


def test_only_its_own_scripts_may_run_and_nothing_is_fetched(hostile: tuple[dict[str, Any], Elements]) -> None:
    _, page = hostile
    (policy,) = [
        v for tag, name, v in page.attributes if tag == "meta" and name == "content" and v and "default-src" in v
    ]
    directives = {part.split()[0]: part.split()[1:] for part in policy.split(";")}
    assert directives["default-src"] == ["'none'"]
    assert not {"connect-src", "font-src", "frame-src", "worker-src"} & set(directives)

    def hashed(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    hashes = {hashed(text) for attributes, text in page.scripts if attributes.get("type") != "application/json"}
    assert set(directives["script-src"]) == hashes
    assert len(hashes) == 2
    assert directives["style-src"] == [hashed(page.style)]
    names = {name for _, name, _ in page.attributes}
    assert not [name for name in names if name.startswith("on") or name in ("src", "srcset", "action", "style")]
    assert {v for _, name, v in page.attributes if name == "href"} == {"#layer", "data:,"}


def test_scripts_make_no_markup_and_evaluate_no_text() -> None:
    for name in SCRIPTS:
        text = (files("llmrank.inspection.page") / "templates" / "scripts" / name).read_text(encoding="utf-8")
        # In HTML these would end or hide the script.
        assert not re.search(r"</script|<!--", text, re.IGNORECASE)
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|new Function|fetch\(", text)


def test_every_label_names_an_element(hostile: tuple[dict[str, Any], Elements]) -> None:
    _, page = hostile
    ids = [v for _, name, v in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    pointing = [v for _, name, v in page.attributes if name in ("for", "aria-labelledby", "aria-describedby") and v]
    assert pointing
    assert {part for value in pointing for part in value.split()} <= set(ids)
    scripts = "".join(
        (files("llmrank.inspection.page") / "templates" / "scripts" / name).read_text(encoding="utf-8")
        for name in SCRIPTS
    )
    assert set(re.findall(r'byId\("([^"]+)"\)', scripts)) <= set(ids)


def test_all_templates_are_used() -> None:
    root = files("llmrank.inspection.page") / "templates"
    assert {entry.name for entry in root.iterdir()} == {"inspect.html", "inspect.css", "scripts"}
    assert {entry.name for entry in (root / "scripts").iterdir()} == {"theme.js", *SCRIPTS}


def test_a_failure_leaves_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inspection = inspected()
    target = tmp_path / "index.html"
    assert write_page(inspection, str(target)) == target
    before = target.read_bytes()
    assert len(before) < 200_000
    with pytest.raises(GraphError, match="no directory"):
        write_page(inspection, tmp_path / "absent" / "index.html")
    monkeypatch.setattr("llmrank.inspection.page.rendering.payload", lambda *_: {"source": "model", "score": math.nan})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_page(inspection, target)
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


def test_the_page_has_the_colour_map_of_the_figures() -> None:
    script = files("llmrank.inspection.page").joinpath("templates/scripts/chart_parts.js").read_text(encoding="utf-8")
    written = re.search(r"const COLOUR_MAP = (\[.*?\]);", script)
    assert written is not None
    colours = json.loads(written[1])
    places = np.linspace(0.0, 1.0, len(colours))
    assert colours == [to_hex(colour) for colour in matplotlib.colormaps[COLOUR_MAP](places)]
