"""The page: its orders of removal are the pruners', its facts the graph's, and no name can break out of it."""

from __future__ import annotations

import base64
import configparser
import hashlib
import json
import re
import sys
from collections import OrderedDict
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from graphs import GraphError
from graphs.analysis.node_summary import summarise_node
from llmrank import ChainedFFNPipeline, IsolatedFFNPipeline
from llmrank.errors import LLMRankError, OptionError
from llmrank.inspection.inspection import Inspection, inspect_model
from llmrank.inspection.page import SCRIPTS, render, write_page
from llmrank.inspection.page_data import payload
from llmrank.prune import BasePruner, GlobalPruner, LayerRecord, LocalPruner
from llmrank.score import ActivationScorer, RandomScorer, WeightedPageRankScorer
from tests.llmrank.tiny_models import STRUCTURE, features, tiny_llama, tiny_t5, token_ids

TOPOLOGIES = {"chained": ChainedFFNPipeline, "isolated": IsolatedFFNPipeline}
AMOUNTS = [percent / 100 for percent in range(91)]


def inspected(
    topology: str = "chained", pruner: BasePruner | None = None, model: Any = None, budget: str = "local"
) -> Inspection:
    scorers = {"wpr": WeightedPageRankScorer(), "activation": ActivationScorer(), "random": RandomScorer(seed=1)}
    pipeline = TOPOLOGIES[topology](model or tiny_llama(), None, pruner=pruner, calibration=token_ids())
    return inspect_model(pipeline, scorers, "wpr", budget)


def array(entry: dict[str, str]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(entry["data"]), np.dtype(entry["dtype"]).newbyteorder("<"))


def split(content: dict[str, Any], entry: dict[str, str]) -> dict[str, np.ndarray]:
    """An array over all neurons, by layer."""
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


# --- orders


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_the_page_holds_the_masks_of_every_amount(topology: str) -> None:
    inspection = inspected(topology)
    content = payload(inspection)
    other = "isolated" if topology == "chained" else "chained"
    assert list(content["scorers"]) == ["wpr", "activation", "random", f"wpr, {other}"]
    for name, entry in content["scorers"].items():
        scored = inspection.elsewhere if "," in name else inspection.scored[name]
        layers = records(dict(scored.importance))
        positions = {budget: split(content, entry[budget]) for budget in ("local", "global")}
        total = sum(layer["size"] for layer in content["layers"])
        for percent, amount in enumerate(AMOUNTS):
            # The counts as the page's script computes them.
            for layer, mask in LocalPruner(amount).prune(layers).items():
                count = round(percent / 100 * len(mask))
                assert (positions["local"][layer] >= count).tolist() == mask.tolist()
            for layer, mask in GlobalPruner(amount).prune(layers).items():
                assert (positions["global"][layer] >= (percent * total + 99) // 100).tolist() == mask.tolist()


def test_wrong_options_are_refused() -> None:
    inspection = inspected()
    for options in ({"top_edges": 0}, {"data_limit": -1}):
        with pytest.raises(OptionError, match=next(iter(options))):
            payload(inspection, **options)


# --- facts


def test_facts_are_those_of_the_graph() -> None:
    inspection = inspected("chained")
    content = payload(inspection, top_edges=2)
    assert content["graph"] == {"nodes": 16 * 3 + 40 * 2, "edges": 4 * 16 * 40}
    facts = {name: split(content, entry) for name, entry in content["facts"].items()}
    edges = {
        key: array(content["edges"][key]).reshape(-1, 2) for key in ("in_nodes", "in_shares", "out_nodes", "out_shares")
    }
    assert content["edges"]["held"] == [40, 40]
    assert content["edges"]["neurons"] is None
    scorer = content["scorers"]["wpr"]
    ties = np.unpackbits(array(scorer["ties"]), bitorder="little")
    start = 0
    for layer in content["layers"]:
        name, size = layer["name"], layer["size"]
        position, node_layer = inspection.places()[name]
        graph, rank = inspection.graphs[position].graph, inspection.main.ranks[position]
        assert layer["in"] == {"name": graph.names[node_layer - 1], "size": 16}
        assert layer["out"] == {"name": graph.names[node_layer + 1], "size": 16}
        for neuron in (0, 7, 39):
            one = summarise_node(graph, rank, node_layer, neuron, top=2)
            assert split(content, scorer["scores"])[name][neuron] == np.float32(one.score)
            place = int(split(content, scorer["local"])[name][neuron])
            assert size - 1 - place == one.position
            assert not ties[start : start + size].any()
            assert (place + 0.5) / size == pytest.approx(one.percentile)
            assert facts["activation"][name][neuron] == np.float32(one.activation)
            assert facts["in_strength"][name][neuron] == pytest.approx(one.in_strength, rel=1e-6)
            assert facts["out_strength"][name][neuron] == pytest.approx(one.out_strength, rel=1e-6)
            for side, expected in (("in", one.in_edges), ("out", one.out_edges)):
                assert edges[f"{side}_nodes"][start + neuron].tolist() == [edge.node for edge in expected]
                shares = edges[f"{side}_shares"][start + neuron]
                np.testing.assert_allclose(shares, [edge.carried for edge in expected], rtol=1e-6)
        start += size


def test_ties_say_which_scores_are_equal() -> None:
    """A dead layer: its weights are zero, so are all activations, and every score is the same."""
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.zero_()
    content = payload(inspected("isolated", model=model))
    ties = np.unpackbits(array(content["scorers"]["activation"]["ties"]), bitorder="little")[:80]
    assert ties.tolist() == [0] + [1] * 39 + [0] * 40
    assert content["scorers"]["activation"]["effective"][0] == pytest.approx(40)


def test_layers_at_the_end_of_a_graph_have_no_neighbour() -> None:
    """With a structure_dict the last listed Linear is prunable, and nothing follows it."""
    pipeline = ChainedFFNPipeline(tiny_llama(), None, STRUCTURE, calibration=token_ids())
    content = payload(inspect_model(pipeline, {"activation": ActivationScorer()}, "activation"))
    assert [layer["size"] for layer in content["layers"]] == [40, 16, 40, 16]
    assert content["layers"][-1]["out"] is None
    # The last 16 rows: no edge leaves.
    assert not array(content["edges"]["out_shares"]).reshape(-1, 3)[-16:].any()
    # Isolated graphs of named Linears are pruned one by one, which the page does not imitate: it says so.
    assert ["compared layers otherwise" in note for note in content["notes"]] == [True]


def test_stacks_of_different_widths() -> None:
    content = payload(inspected("chained", model=tiny_t5()))
    assert len({layer["name"] for layer in content["layers"]}) == 4
    assert not content["notes"]


@pytest.mark.parametrize(
    ("amount", "percent", "label"),
    [(0.3, 30, "30 %"), (0.07, 7, "7 %"), (0.333, None, "33.3 %"), (0.95, None, "95 %"), (5, None, "5 neurons")],
)
def test_the_amount_asked_for(amount: float, percent: int | None, label: str) -> None:
    inspection = inspected(pruner=GlobalPruner(amount))
    content = payload(inspection)
    asked = content["asked"]
    assert (asked["percent"], asked["label"]) == (percent, label)
    assert not content["notes"]
    for name, count in zip(inspection.places(), asked["local"], strict=True):
        assert 40 - count == int(inspection.main.masks["local"][name].sum())
    assert 80 - asked["global"] == inspection.main.masks["global"].kept


def test_its_sets_are_the_inspections_whatever_the_settings() -> None:
    for pruner in (
        LocalPruner(0.3, multiple_of=16),
        GlobalPruner(0.3, multiple_of=16),
        GlobalPruner(0.3, normalize="mean"),
        GlobalPruner(0.9, min_keep=4),
    ):
        content = payload(inspected(pruner=pruner))
        assert not content["notes"]
        assert content["multiple_of"] == pruner.multiple_of
        assert content["min_keep"] == pruner.min_keep
        assert content["normalize"] == getattr(pruner, "normalize", "auto")


def test_an_amount_that_only_one_budget_permits() -> None:
    inspection = inspected(pruner=GlobalPruner(60), budget="global")
    content = payload(inspection)
    assert not content["notes"]
    assert content["asked"]["local"] == [60, 60]
    assert content["asked"]["global"] == 60


# --- size


def test_what_does_not_fit_is_left_out_and_said() -> None:
    model = tiny_llama(intermediate_size=400)
    inspection = inspected(model=model)
    whole = payload(inspection)
    assert not whole["notes"]

    def size(content: dict[str, Any]) -> int:
        return len(json.dumps({key: content[key] for key in ("scorers", "facts", "edges")}))

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
    # The edges that stay are those of the highest neurons.
    content = payload(inspection, data_limit=0)
    neurons = array(content["edges"]["neurons"]).reshape(2, 64)
    for name, chosen in zip(inspection.places(), neurons, strict=True):
        scores = inspection.main.importance[name]
        assert set(chosen.tolist()) == set(np.argsort(-scores, kind="stable")[:64].tolist())
        assert chosen.tolist() == sorted(chosen.tolist())
    assert "64 highest neurons" in content["notes"][1]


# --- the page itself


class Elements(HTMLParser):
    """Scripts, styles and attributes of a page, as a parser sees them."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.title = ""
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


HOSTILE = "</script><script>alert(1)</script><!-- \" ' & \u2028 日本 ${x}"


def hostile_inspection() -> Inspection:
    layers = OrderedDict([(HOSTILE.replace(".", ""), nn.Linear(6, 30)), ("act", nn.ReLU()), ("last", nn.Linear(30, 4))])
    model = nn.Sequential(layers)
    model.name_or_path = HOSTILE
    pipeline = IsolatedFFNPipeline(model, None, calibration=features(50, 6))
    return inspect_model(pipeline, {"activation": ActivationScorer()}, "activation")


@pytest.fixture(scope="module")
def hostile() -> tuple[dict[str, Any], Elements]:
    pytest.importorskip("plotly", reason="the page draws with plotly")
    content = payload(hostile_inspection())
    return content, Elements(render(content))


def test_names_stay_data(hostile: tuple[dict[str, Any], Elements]) -> None:
    content, page = hostile
    assert content["source"] == HOSTILE
    assert content["layers"][0]["name"] == HOSTILE
    assert len(page.scripts) == 4
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
    hashes = {
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for attributes, text in page.scripts
        if attributes.get("type") != "application/json"
    }
    assert set(directives["script-src"]) == hashes
    assert len(hashes) == 3
    names = {name for _, name, _ in page.attributes}
    assert not [name for name in names if name.startswith("on") or name in ("src", "srcset", "action", "style")]
    assert {v for _, name, v in page.attributes if name == "href"} == {"#layer", "data:,"}


def test_its_own_scripts_make_no_markup_and_evaluate_nothing() -> None:
    for name in SCRIPTS:
        text = (files("llmrank.inspection") / "templates" / name).read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|new Function|fetch\(", text)


def test_every_label_names_something(hostile: tuple[dict[str, Any], Elements]) -> None:
    _, page = hostile
    ids = [v for _, name, v in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    pointing = [v for _, name, v in page.attributes if name in ("for", "aria-labelledby", "aria-describedby") and v]
    assert pointing
    assert {part for value in pointing for part in value.split()} <= set(ids)
    scripts = "".join(
        (files("llmrank.inspection") / "templates" / name).read_text(encoding="utf-8") for name in SCRIPTS
    )
    assert set(re.findall(r'byId\("([^"]+)"\)', scripts)) <= set(ids)


def test_templates_are_shipped() -> None:
    config = configparser.ConfigParser()
    config.read(Path(__file__).parents[3] / "setup.cfg", encoding="utf-8")
    shipped = config["options.package_data"]["llmrank.inspection"].replace(",", " ").split()
    root = files("llmrank.inspection")
    names = sorted(entry.name for entry in (root / "templates").iterdir())
    assert set(names) == {"inspect.html", "inspect.css", "theme.js", *SCRIPTS}
    assert "templates/*" in shipped


def test_it_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("plotly", reason="the page draws with plotly")
    inspection = inspected()
    target = tmp_path / "index.html"
    assert write_page(inspection, str(target)) == target
    before = target.read_bytes()
    assert 4_000_000 < len(before) < 6_000_000
    with pytest.raises(OptionError, match="top_edges"):
        write_page(inspection, target, top_edges=0)
    assert target.read_bytes() == before
    with pytest.raises(GraphError, match="no directory"):
        write_page(inspection, tmp_path / "absent" / "index.html")
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


def test_without_plotly_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(LLMRankError, match="pip install plotly"):
        write_page(inspected(), tmp_path / "index.html")
    assert not list(tmp_path.iterdir())
