"""``llmrank inspect``, run in this process on a tiny checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import networkx
import pytest

import llmrank
from graphs import load_graph, load_rank
from llmrank.cli.commands import inspect as cli_inspect
from llmrank.evaluation.token_losses import token_losses
from llmrank.inspection.meaning.meanings import find_meanings
from llmrank.models import find_ffns
from llmrank.text import tokenise
from tests.llmrank import commands
from tests.llmrank.commands import SHORT
from tests.llmrank.tiny_mixtures import tiny_mixture
from tests.llmrank.tiny_models import FFN, LLAMA, tokenizer
from tests.tables import table

pytestmark = pytest.mark.usefixtures("transformers_log_as_it_was")


def run(*arguments: Any) -> int:
    return commands.run("inspect", *arguments)


def shown(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """Run a command that succeeds; return what it prints."""
    assert run(*arguments) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    return commands.refused(capsys, "inspect", *arguments)


def row(output: str, layer: str) -> list[str]:
    """Return the cells of a row of the table of layers, without the layer's number."""
    cells = [line.split() for line in output.splitlines()]
    return next(words[words.index(layer) :] for words in cells if layer in words[:2] and len(words) > 3)


# --- the terminal


def test_it_prints_one_row_for_each_layer(checkpoint: Path, corpus: Path, capsys: Any) -> None:
    output = shown(capsys, checkpoint, "--calibration", corpus, *SHORT)
    assert "isolated, 2 graphs" in output  # the default
    assert f"{LLAMA['hidden_size'] * FFN:,}" in output  # edges into the hidden layer
    assert "same neurons as wpr, isolated" in output
    for name in ("mpr", "fbpr", "norm", "activation", "random", "wanda", "wanda-sp", "flap", "wpr, chained"):
        assert name in output
    for number in (0, 1):
        cells = row(output, f"{number}.mlp")
        assert cells[1:3] == [str(FFN), f"{LLAMA['hidden_size'] * FFN:,}"]
        assert cells[-2] == str(FFN - round(0.3 * FFN))
    assert row(output, "all")[1] == f"{2 * FFN}"
    # The table fits a terminal of 80 columns.
    table = output[: output.index("dead:")]
    assert max(map(len, table.splitlines())) <= 80
    assert "--output" in output


def test_a_scorer_can_be_chosen_by_trial(checkpoint: Path, corpus: Path, capsys: Any) -> None:
    common = (checkpoint, "--calibration", corpus, *SHORT, "--compare", "norm")
    output = shown(capsys, *common, "--scorer", "random,wpr:gamma=0.9")
    assert "scored by random" in output or "scored by wpr:gamma=0.9" in output
    assert "norm" in output
    assert "auto" not in output
    assert "auto is no score but a choice of one" in refused(capsys, checkpoint, "--compare", "auto")


def test_it_says_what_the_columns_mean(checkpoint: Path, corpus: Path, capsys: Any) -> None:
    output = shown(capsys, checkpoint, "--calibration", corpus, *SHORT, "--amount", "0.25", "--compare", "none")
    for word in ("dead:", "effective:", "top 1 %:", "Gini:", "highest:", "keeps:", "Spearman:", "25 %"):
        assert word in output
    assert "same neurons as wpr" in output  # the other topology is always compared


def test_the_facts_of_a_neuron_are_printed_in_words(checkpoint: Path, corpus: Path, capsys: Any) -> None:
    options = (checkpoint, "--calibration", corpus, *SHORT, "--pipeline", "chained")
    output = shown(capsys, *options, "--neuron", "1:3", "--neuron", "model.layers.0.mlp:0")
    for part in (
        "Neuron 1:3 (model.layers.1.mlp)",
        "Neuron 0:0 (model.layers.0.mlp)",
        "strongest edges from nodes of model.layers.0.mlp:output (share of what arrives): ",
        "strongest edges to nodes of model.layers.1.mlp:output (share of what leaves): ",
        "strongest paths through the neuron",
        " > 3 > ",
    ):
        assert part in output
    verdicts = [line for line in output.splitlines() if line.startswith(("local: ", "global: "))]
    assert len(verdicts) == 4
    assert all("kept, " in line or "removed, " in line for line in verdicts)


def test_a_neuron_of_a_layer_without_removed_neurons_has_no_margin(checkpoint: Path, corpus: Path, capsys: Any) -> None:
    output = shown(capsys, checkpoint, "--calibration", corpus, *SHORT, "--amount", 0, "--neuron", "1:3")
    assert "local: kept; no neuron of its layer is removed" in output
    assert "nan" not in output


def test_an_amount_larger_than_any_layer(checkpoint: Path, corpus: Path, capsys: Any) -> None:
    options = (checkpoint, "--calibration", corpus, *SHORT, "--amount", FFN + 10)
    output = shown(capsys, *options, "--pruner", "global", "--neuron", "0:1")
    assert "local pruning refuses this amount: model.layers.0.mlp would keep 0 of" in output
    assert row(output, "all")[-1] == str(FFN - 10)
    assert row(output, "1.mlp")[-2] == "refused"
    assert "would keep 0 of" in refused(capsys, *options, "--pruner", "local")


def test_options_of_global_pruning_apply_whichever_pruner_is_named(
    checkpoint: Path, corpus: Path, tmp_path: Path, capsys: Any
) -> None:
    common = (
        checkpoint,
        "--calibration",
        corpus,
        *SHORT,
        "--format",
        "html",
    )
    for budget in ("local", "global"):
        shown(capsys, *common, "--pruner", f"{budget}:multiple_of=8,normalize=mean", "--output", tmp_path / budget)
    local, together = (json.loads((tmp_path / budget / "summary.json").read_text()) for budget in ("local", "global"))
    assert local["layers"] == together["layers"]
    assert (local["budget"], local["normalize"], local["multiple_of"]) == ("local", "mean", 8)


# --- the files


@pytest.mark.slow
def test_it_writes_all_formats(checkpoint: Path, corpus: Path, tmp_path: Path, capsys: Any) -> None:
    output = tmp_path / "seen"
    options = ("--calibration", corpus, *SHORT, "--layers", "1", "--top", "5", "--pipeline", "chained")
    formats = "png,svg,html,graphml,gexf,neuronpedia,safetensors,npz,csv"
    printed = shown(capsys, checkpoint, *options, "--output", output, "--format", formats, "--neuron", "1:3")
    assert "Neuron 1:3" in printed
    assert f"Open {output / 'index.html'} in a browser" in printed
    figures = {
        f"{stem}.{kind}"
        for stem in ("removed_neurons", "concentration", "agreement", "layer-1")
        for kind in ("png", "svg")
    }
    graphs = {"graph-top.graphml", "graph-top.gexf", "graph.safetensors", "graph-rank.safetensors", "graph.npz"}
    found = {path.name for path in output.iterdir()}
    assert figures | graphs | {"summary.json", "index.html"} <= found
    assert any("edges" in name and name.endswith(".csv") for name in {p.name for p in output.rglob("*.csv")})
    summary = json.loads((output / "summary.json").read_text())
    assert list(summary["layers"]) == ["model.layers.1.mlp"]
    graph, rank = load_graph(output / "graph.safetensors"), load_rank(output / "graph-rank.safetensors")
    assert graph.layer_sizes == tuple(map(len, rank.scores)) == (16, FFN, 16, FFN, 16)
    drawn = networkx.read_graphml(output / "graph-top.graphml")
    assert len(drawn) == 5 * 5
    uploaded = json.loads((output / "graph-top.neuronpedia.json").read_text(encoding="utf-8"))
    assert uploaded["metadata"]["scan"] == checkpoint.name
    assert len(uploaded["nodes"]) == 5 * 5
    # The same model and text give the same figures.
    again = tmp_path / "again"
    assert run(checkpoint, *options, "--output", again, "--format", "png,svg") == 0
    for name in figures:
        assert (output / name).read_bytes() == (again / name).read_bytes(), name


@pytest.mark.parametrize("opens", [True, False])
def test_the_page_is_opened_or_its_path_is_printed(
    checkpoint: Path, corpus: Path, tmp_path: Path, capsys: Any, monkeypatch: Any, opens: bool
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(cli_inspect.webbrowser, "open", lambda address: asked.append(address) or opens)
    options = ("--calibration", corpus, *SHORT, "--output", tmp_path / "seen", "--format", "html", "--open")
    output = shown(capsys, checkpoint, *options)
    assert asked == [(tmp_path / "seen" / "index.html").as_uri()]
    assert ("in a browser" in output) is not opens


@pytest.mark.slow
def test_a_failure_leaves_no_files(
    checkpoint: Path, corpus: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("llmrank.cli.commands.inspect.write_page", full)
    message = run(checkpoint, "--calibration", corpus, *SHORT, "--output", tmp_path / "out")
    assert message == 2
    assert "No space left" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.txt"]


# --- refusals


@table(
    ("arguments", "message"),
    [
        (("--open",), "--open needs --output"),
        (("--layers", "0-999999999999"), "layers 0 to 1, got '0-999999999999'"),
        (("--top", 0), "--top must be at least 1"),
    ],
)
def test_it_refuses(
    checkpoint: Path, corpus: Path, tmp_path: Path, capsys: Any, arguments: tuple[Any, ...], message: str
) -> None:
    output = [] if "--open" in arguments else ["--output", tmp_path / "out"]
    assert message in refused(capsys, checkpoint, "--calibration", corpus, *SHORT, *output, *arguments)
    assert list(tmp_path.glob("*out*")) == []


@table(
    ("arguments", "message"),
    [
        (("--format", "pdf"), "unknown format pdf; expected some of png, svg, html"),
        (("--layers", "a-b"), "numbers and ranges such as 0-3,29"),
        (("--layers", "3-1"), "numbers and ranges such as 0-3,29"),
        (("--layers", ""), "numbers and ranges such as 0-3,29"),
        (("--neuron", "17"), "expected LAYER:NEURON, such as 3:17"),
        (("--compare", "pagerank"), "unknown scorer"),
        (("--scorer", "pagerank"), "unknown scorer"),
        (("--pruner", "thirds"), "expects --pruner local or global, got 'thirds'"),
        (("--pruner", "sensitivity"), "expects --pruner local or global, got 'sensitivity'"),
        (("--amount", "1.5"), "amount must be a share"),
        (("--scorer", "wpr:gamma=2"), "gamma"),
        (("--pruner", "global:normalize=median"), "option normalize must be"),
    ],
)
def test_wrong_options_are_found_before_a_model_is_loaded(
    capsys: Any, monkeypatch: Any, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.setattr(cli_inspect, "load", lambda _: pytest.fail("began to load"))
    assert message in refused(capsys, "no/such/model", "--output", tmp_path / "seen", *arguments)


@table(
    ("arguments", "message"),
    [
        (("--layers", "7"), "layers 0 to 1, got '7'"),
        (("--neuron", "1:400"), "neurons 0 to 39, got 400"),
        (("--neuron", "attention:3"), "no prunable layer 'attention'"),
        (("--amount", FFN), "would keep 0 of 40 neurons"),
        (("--pruner", f"local:min_keep={FFN + 1}"), "fewer than min_keep=41"),
    ],
)
def test_options_that_do_not_fit_the_model_are_found_before_the_calibration(
    checkpoint: Path, capsys: Any, monkeypatch: Any, arguments: tuple[Any, ...], message: str
) -> None:
    monkeypatch.setattr("llmrank.pipeline.stages.calibrate", lambda *_: pytest.fail("began to calibrate"))
    assert message in refused(capsys, checkpoint, *SHORT, *arguments)


def test_parquet_without_pyarrow_is_refused_at_once(capsys: Any, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(cli_inspect, "find_spec", lambda _: None)
    monkeypatch.setattr(cli_inspect, "load", lambda _: pytest.fail("began to load"))
    message = refused(capsys, "no/such/model", "--output", tmp_path / "seen", "--format", "parquet")
    assert 'pip install "llmrank[tables]"' in message


def test_formats_without_an_output_directory_are_refused(capsys: Any) -> None:
    assert "needs --output" in refused(capsys, "no/such/model", "--format", "gexf")


# --- the residual topology


@pytest.mark.slow
def test_the_residual_topology_is_inspected_as_the_others_are(
    checkpoint: Path, corpus: Path, tmp_path: Path, capsys: Any
) -> None:
    output = tmp_path / "seen"
    printed = shown(
        capsys,
        checkpoint,
        *("--pipeline", "residual:attention=true", "--scorer", "fbpr:edges=energy"),
        *("--calibration", corpus, "--output", output, "--format", "png,html,graphml,safetensors", "--neuron", "1:3"),
        *SHORT,
    )
    assert "residual, 4 graphs" in printed  # two attentions, two FFNs
    assert "fbpr, chained" in printed
    assert row(printed, "1.mlp")[1] == str(FFN)
    assert "Neuron 1:3" in printed
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    assert summary["topology"] == "residual"
    assert list(summary["layers"]) == ["model.layers.0.mlp", "model.layers.1.mlp"]
    assert (output / "index.html").is_file()


# --- mixtures of experts


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llmrank.save(tmp_path_factory.mktemp("models") / "mixture", tiny_mixture("qwen2_moe"), tokenizer())


def test_a_mixture_is_one_row_and_its_experts_are_listed_on_demand(mixture: Path, corpus: Path, capsys: Any) -> None:
    common = (mixture, "--calibration", corpus, *SHORT, "--targets", "experts", "--compare", "none")
    output = shown(capsys, *common)
    for number in (0, 1):
        cells = row(output, f"{number}.mlp.experts")
        assert cells[1] == str(8 * 24 + 40)
        assert cells[-2] == str(6 * 24 + 40)
    assert "8 + 1" in output
    assert "6 x 24" in output
    assert "30 % of the experts of every layer" in output
    assert "--layers 0 lists the experts of model.layers.0.mlp.experts." in output
    assert "Experts of" not in output
    assert max(map(len, output[output.index("Experts") : output.index("experts: number")].splitlines())) <= 80
    for layers in ("1", "model.layers.1.mlp.experts", "model.layers.1.mlp.experts.3"):
        output = shown(capsys, *common, "--layers", layers)
        listed = output[output.index("Experts of model.layers.1.mlp.experts") :].splitlines()
        cells = [line.split() for line in listed if line.split() and line.split()[0] in {*map(str, range(8))}]
        assert [words[0] for words in cells] == [str(e) for e in range(8)]
        assert [words[-2] for words in cells].count("removed") == 2
        assert "shared_expert" in output
        assert "Experts of model.layers.0" not in output
    assert "no prunable layer 'model.x'" in refused(capsys, *common, "--layers", "model.x")


@pytest.mark.slow
def test_a_neuron_of_an_expert_and_all_formats(mixture: Path, corpus: Path, tmp_path: Path, capsys: Any) -> None:
    common = (mixture, "--calibration", corpus, *SHORT, "--compare", "none")
    formats = "png,svg,html,graphml,gexf,safetensors,npz,csv"
    output = shown(capsys, *common, "--neuron", "1.3:5", "--format", formats, "--output", tmp_path / "seen")
    assert "Neuron 1:77 (neuron 5 of model.layers.1.mlp.experts.3)" in output
    assert "score of its expert" in output
    assert {"experts.png", "experts.svg", "index.html", "graph-000-top.gexf"} <= {
        path.name for path in (tmp_path / "seen").iterdir()
    }
    summary = json.loads((tmp_path / "seen" / "summary.json").read_text())
    assert [len(layer["experts"]) for layer in summary["layers"].values()] == [9, 9]


def test_experts_can_be_removed_only_from_a_mixture(checkpoint: Path, corpus: Path, capsys: Any) -> None:
    options = (checkpoint, "--calibration", corpus, *SHORT, "--targets")
    assert "has no experts" in refused(capsys, *options, "experts")
    assert "unknown targets 'layers'" in refused(capsys, *options, "layers")
    assert "an inspection shows what is inside blocks" in refused(capsys, *options, "blocks")
    assert "an inspection shows heads by themselves" in refused(capsys, *options, "heads,neurons")


# --- contexts


def test_a_neuron_is_described_with_its_contexts(checkpoint: Path, corpus: Path, capsys: Any) -> None:
    output = shown(capsys, checkpoint, "--calibration", corpus, *SHORT, "--neuron", "model.layers.1.mlp:7")
    loaded = llmrank.load(checkpoint)
    texts = tokenise(corpus, loaded.tokenizer, 2, 16, "calibration")
    meaning = find_meanings(loaded.model, loaded.tokenizer, find_ffns(loaded.model), texts).of("model.layers.1.mlp", 7)
    described = " ".join(output[output.index("Neuron 1:7") :].split())
    assert len(meaning.contexts) == 5
    for each in meaning.contexts:
        assert f"{each.activation:+.4g}" in described
        marked = f"{each.context.before} «{each.context.token.strip()}»{each.context.after}"
        assert " ".join(marked.split()) in described
    assert f"promotes, by the logit lens: {meaning.promoted[0].token!r} ({meaning.promoted[0].logit:+.3g})" in described
    assert f"demotes, by the logit lens: {meaning.demoted[0].token!r}" in described


def test_neurons_of_experts_have_contexts(tmp_path: Path, corpus: Path, capsys: Any) -> None:
    place = llmrank.save(tmp_path / "mixture", tiny_mixture("mixtral"), tokenizer())
    output = shown(capsys, place, "--calibration", corpus, *SHORT, "--neuron", "1.3:4")
    loaded = llmrank.load(place)
    texts = tokenise(corpus, loaded.tokenizer, 2, 16, "calibration")
    found = find_meanings(loaded.model, loaded.tokenizer, find_ffns(loaded.model), texts)
    meaning = found.of("model.layers.1.mlp.experts.3", 4)
    assert f"promotes, by the logit lens: {meaning.promoted[0].token!r}" in output
    assert f"{meaning.contexts[0].activation:+.4g}" in output


def test_contexts_are_written_where_they_are_asked_for(
    checkpoint: Path, corpus: Path, tmp_path: Path, capsys: Any
) -> None:
    common = ["--calibration", corpus, *SHORT, "--compare", "none"]
    shown(
        capsys,
        checkpoint,
        *common,
        "--output",
        tmp_path / "seen",
        "--contexts",
        "--format",
        "html,contexts.csv,contexts.json",
    )
    names = {path.name for path in (tmp_path / "seen").iterdir()}
    assert names == {"contexts.csv", "contexts.json", "index.html", "summary.json"}
    assert len(json.loads((tmp_path / "seen" / "contexts.json").read_text(encoding="utf-8"))) == 2 * FFN
    page = (tmp_path / "seen" / "index.html").read_text(encoding="utf-8")
    data = json.loads(page[page.index('id="data">') + 10 :].split("</script>")[0])
    assert data["meanings"]["held"] == [FFN, FFN]
    loaded = llmrank.load(checkpoint)
    texts = tokenise(corpus, loaded.tokenizer, 2, 16, "calibration")
    before = token_losses(loaded.model, texts)
    assert data["changes"]["all"]["before"] == pytest.approx(float(before.losses.mean()))
    shown(capsys, checkpoint, *common, "--output", tmp_path / "without", "--format", "html")
    page = (tmp_path / "without" / "index.html").read_text(encoding="utf-8")
    assert '"meanings":null' in page


def test_options_of_contexts_that_do_not_go_together(checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    assert "--contexts needs --output" in refused(capsys, checkpoint, "--contexts")
    said = refused(capsys, checkpoint, "--output", tmp_path / "seen", "--format", "contexts.json")
    assert "the format contexts.json needs --contexts" in said
    said = refused(capsys, checkpoint, "--output", tmp_path / "seen", "--format", "png", "--contexts")
    assert "--contexts needs a format that shows them: html, contexts.csv or contexts.json" in said
