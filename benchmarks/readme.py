"""Write the tables of the README and of the documentation from the committed results, each between its two marks.

Run it as ``python -m benchmarks.readme`` after a result has changed. With ``--check`` it changes nothing, and fails if a page
differs from the results, or if a command that a result was made by can no longer be read.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.across import DEFAULT, ITEMS, KINDS, PEER, ROWS_OF_HEADS, TEXTS, kind_of, share_right
from benchmarks.blocks import CHOICES, NEURONS, STAGES, TWO_SSP
from benchmarks.healing import most_healed, parts, start_of
from benchmarks.result_files import write
from benchmarks.speed import building_and_solving, quickest, solving
from llmrank.evaluation.estimate import Estimate
from llmrank.evaluation.perplexity import Perplexity

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
# Page -> the tables that it shows.
PAGES = {
    "README.md": ("gains",),
    "docs/results/quality.md": ("as cut", "repaired"),
    "docs/results/other-text.md": ("out of domain",),
    "docs/results/experts.md": ("experts",),
    "docs/results/pagerank.md": ("libraries",),
    "docs/guide/heads.md": ("heads",),
    "docs/guide/blocks.md": ("blocks",),
    "docs/guide/reproduce.md": ("reproducibility",),
}
AMOUNTS = (0.1, 0.2, 0.3, 0.5)
# The end of valid, by which settings are chosen, is shown for this amount alone.
CHOSEN_AT = 0.3

# Label -> the rows to look up. Of several rows the best on the end of valid is shown, as a user would choose.
AS_CUT = {
    "**weighted PageRank, `--pruner sensitivity`**": ["ffn | weighted pagerank | isolated | sensitivity"],
    "weighted PageRank, local": ["ffn | weighted pagerank | isolated | local"],
    "weighted PageRank, global": ["ffn | weighted pagerank | isolated | global"],
    "modified PageRank, local": ["ffn | modified pagerank | isolated | local"],
    "weighted PageRank, residual graph with attention, local": [
        "ffn | weighted pagerank | residual, attention | local"
    ],
    "activation alone, our global budget": ["ffn | activation | isolated | global"],
    "Wanda-sp (L1) as published": ["ffn | wanda-sp (L1) | isolated | local"],
    "Wanda-sp (L1), our global budget": ["ffn | wanda-sp (L1) | isolated | global"],
    "FLAP's score, global": ["ffn | flap | isolated | global"],
    "optipfair, MAW with data": ["peer | optipfair, MAW with data |  | local"],
    "optipfair, MAW without data": ["peer | optipfair, MAW |  | local"],
    "Torch-Pruning, Taylor, the better budget": [
        "peer | Torch-Pruning, Taylor |  | local",
        "peer | Torch-Pruning, Taylor |  | global",
    ],
    "Torch-Pruning, magnitude, the better budget": [
        "peer | Torch-Pruning, magnitude |  | local",
        "peer | Torch-Pruning, magnitude |  | global",
    ],
}
# What the README compares at CHOSEN_AT, repaired: label, our row, the best row of another method, and the name of that method.
GAINS = (
    (
        "SmolLM2-135M-Instruct, dense {dense:.2f}, `--scorer wpr`, repaired",
        "ffn | weighted pagerank | isolated | local | lstsq",
        "ffn | wanda-sp (L1) | isolated | global | lstsq",
        "Wanda-sp's score",
    ),
)
# The other methods that the default is compared with on every model, as cut, each under its own budget.
OTHERS = {
    ("activation", "local"): "activation",
    ("wanda-sp", "local"): "Wanda-sp",
    ("flap", "local"): "FLAP's score",
    (PEER, "local"): "optipfair",
}
# The row of compact.json, and the true error of speed.json, that the README shows.
FASTER = {"what": "ffn", "tokens": 1024, "amount": 0.3, "multiple_of": 64}
RANKED_TO = 1e-12
# Case of speed.json -> what it is called where its times are shown.
GRAPHS = {
    "chain": "chain of the first 4 FFNs of SmolLM2-135M",
    "residual": "their residual graph",
    "bidirectional": "their bidirectional graph",
    "kronecker": "Kronecker graph without layers",
    "uniform": "uniform random graph",
    "road": "road-like mesh",
    "power law": "power law graph",
}
REPAIRED = {
    "**`llmrank prune --scorer wpr --calibration valid.txt --samples 64`**: local, least squares": [
        "ffn | weighted pagerank | isolated | local | lstsq"
    ],
    "the same, `--pruner sensitivity`": ["ffn | weighted pagerank | isolated | sensitivity | lstsq"],
    "Wanda-sp (L1), our global budget": ["ffn | wanda-sp (L1) | isolated | global | lstsq"],
    "optipfair, MAW with data": ["peer | optipfair, MAW with data |  | local | lstsq"],
    "local, `--repair lstsq:reselect=true`": ["ffn | weighted pagerank | isolated | local | lstsq (reselect)"],
}

# Label -> its row in out_of_domain.json.
OUT_OF_DOMAIN = {
    "**`--scorer wpr`**: weighted PageRank, local, least squares": "ffn | weighted pagerank | isolated | local | lstsq",
    "the same, `--repair lstsq:target=output`": "ffn | weighted pagerank | isolated | local | lstsq (output)",
    "the same, `--repair lstsq:reselect=true`": "ffn | weighted pagerank | isolated | local | lstsq (reselect)",
    "the same, `--pruner sensitivity`": "ffn | weighted pagerank | isolated | sensitivity | lstsq",
    "optipfair, MAW with data, with our least squares": "peer | optipfair, MAW with data |  | local | lstsq",
    "Wanda-sp (L1), our global budget, with our least squares": "ffn | wanda-sp (L1) | isolated | global | lstsq",
    "as cut: weighted PageRank, local": "ffn | weighted pagerank | isolated | local | none",
    "as cut: weighted PageRank, `--pruner sensitivity`": "ffn | weighted pagerank | isolated | sensitivity | none",
    "as cut: optipfair, MAW with data": "peer | optipfair, MAW with data |  | local | none",
    "as cut: Wanda-sp (L1), our global budget": "ffn | wanda-sp (L1) | isolated | global | none",
}


def gains(
    quality_results: dict[str, Any],
    compact: dict[str, Any],
    speed: dict[str, Any],
    across: dict[str, Any],
    healing: dict[str, Any],
    of_heads: dict[str, Any] | None = None,
) -> dict[str, str]:
    """Return the table of the README: a row for each gain of a user, with errors where the results have them."""
    rows = quality_results["rows"]
    lines = [*every_model(across), *([] if of_heads is None else [most_heads(of_heads)]), *healed(healing)]
    for label, ours, other, name in GAINS:
        own, peer = (_row(rows, name_of_row, CHOSEN_AT) for name_of_row in (ours, other))
        if own and peer:
            label = label.format(dense=quality_results["dense"]["test"])
            lines.append(f"| {label} | {_cell(own, 'test')} | {_cell(peer, 'test')}, {name} |")
    ffn = next(row for row in compact["cases"][0]["rows"] if FASTER.items() <= row.items())
    low, high = ffn["quartiles"]
    lines.append(
        f"| speed of the FFNs, width {ffn['width']} instead of 1536, {ffn['tokens']} tokens | {ffn['speedup']:.2f} times the "
        f"dense FFNs ({low:.2f} to {high:.2f}) | |"
    )
    chain = next(case for case in speed["cases"] if case["name"] == "chain")
    own, peer = _ranked(chain), quickest(chain, RANKED_TO, building_and_solving, by_hand=False)
    lines.append(
        f"| time to build and rank the graph of 4 FFNs, {chain['edges'] / 1e6:.0f} M edges | {_ms(building_and_solving(own))} "
        f"| {_ms(building_and_solving(peer))} ({peer['name']}) |"
    )
    usual = f"{CHOSEN_AT:.0%} of the hidden neurons removed, as cut, unless a row says otherwise"
    head = f"| perplexity on prose and on Python; {usual} | llmrank | best other |"
    return {"gains": "\n".join([head, "| --- | ---: | ---: |", *lines])}


def every_model(across: dict[str, Any]) -> list[str]:
    """Return a row for each model: the default as cut, and the best of the other methods, on both kinds of text.

    The others are calibrated on prose alone, as their users do it. The default adds other text, where that was measured.
    """
    lines = []
    for model, found in across["models"].items():
        as_cut = [row for row in found["rows"] if (row["amount"], row["repair"]) == (CHOSEN_AT, "none")]
        rows = {(row["scorer"], row["budget"], row["text"]): row for row in as_cut}
        default = rows.get(DEFAULT) or rows[DEFAULT[0], DEFAULT[1], TEXTS[1]]
        dense, ours, others = [], [], []
        for kind in KINDS:
            own = kind_of(default, kind)
            on_prose = {pair: rows.get((*pair, TEXTS[1])) for pair in OTHERS}
            measured = {pair: kind_of(row, kind) for pair, row in on_prose.items() if row is not None}
            best = min(measured, key=lambda pair: _perplexity(measured[pair]))
            dense.append(f"{_perplexity(kind_of(found['dense'], kind)):.2f}")
            ours.append(f"{_perplexity(own):.2f}")
            others.append(f"{_behind(own, measured[best])}, {OTHERS[best]}")
        dtype = found.get("protocol", {}).get("dtype", "float32")
        name = model.removesuffix(".Q4_1") + ("" if dtype == "float32" else f" ({dtype})")
        name += "" if DEFAULT in rows else ", prose alone"
        lines.append(f"| {name}, dense {' and '.join(dense)} | {' and '.join(ours)} | {'; '.join(others)} |")
    return lines


def most_heads(results: dict[str, Any]) -> str:
    """Return a row for the first model that lost heads, as cut: the sensitivity budget, and the best of the other methods."""
    model, found = next(iter(results["models"].items()))
    as_cut = [row for row in found["rows"] if (row["text"], row["repair"]) == (TEXTS[0], "none")]
    amount = max(row["amount"] for row in as_cut)
    rows = {(row["scorer"], row["budget"]): row for row in as_cut if row["amount"] == amount}
    own, others = rows[DEFAULT[0], "sensitivity"], {OTHERS[pair]: rows[pair] for pair in OTHERS if pair in rows}
    best = {kind: min(others, key=lambda name: _perplexity(kind_of(others[name], kind))) for kind in KINDS}
    dense = " and ".join(f"{_perplexity(kind_of(found['dense'], kind)):.2f}" for kind in KINDS)
    ours = " and ".join(f"{_perplexity(kind_of(own, kind)):.2f}" for kind in KINDS)
    peers = "; ".join(
        f"{_behind(kind_of(own, kind), kind_of(others[best[kind]], kind))}, {best[kind]}" for kind in KINDS
    )
    label = (
        f"{model.removesuffix('.Q4_1')}, dense {dense}, {amount:.0%} of the heads instead (sensitivity; others local)"
    )
    return f"| {label} | {ours} | {peers} |"


def healed(healing: dict[str, Any]) -> list[str]:
    """Return a row for each model that was healed, beside the same without healing, on both kinds of text."""
    lines = []
    for model, found in healing["models"].items():
        rows, dense = found["rows"], found["dense"]
        label = most_healed(rows)
        if label is not None:
            own, before = rows[label], rows[start_of(label)]
            ours = " and ".join(f"{_perplexity(kind_of(own, kind)):.2f}" for kind in KINDS)
            repaired = " and ".join(_behind(kind_of(own, kind), kind_of(before, kind)) for kind in KINDS)
            kept = [share_right(row[ITEMS], dense[ITEMS]) for row in (own, before)]
            whole = " and ".join(f"{_perplexity(kind_of(dense, kind)):.2f}" for kind in KINDS)
            name = f"{model.removesuffix('.Q4_1')}, dense {whole}, healed with {parts(label)[-1]:,} tokens"
            lines.append(f"| {name} | {ours}; items {kept[0]} | {repaired}; {kept[1]}, repaired only |")
    return lines


def _perplexity(row: dict[str, Any]) -> float:
    return Perplexity.of(row["losses"], row["counts"]).value


def _behind(own: dict[str, Any], other: dict[str, Any]) -> str:
    """Return the perplexity of the other row, and its difference from ours in nats with the standard error, paired."""
    pairs = zip(other["losses"], own["losses"], strict=True)
    change = Estimate.of([one - two for one, two in pairs], own["counts"])
    return f"{_perplexity(other):.2f} ({change.value:+.3f} ± {change.error:.3f})"


def libraries(speed: dict[str, Any]) -> dict[str, str]:
    """Return the table of the libraries' times, by the name of its marks: a row for each graph, solved to RANKED_TO.

    A cell gives the time from the weights, then in brackets that of the call alone. Two names stand where one is the quickest
    from the weights and another in the call.
    """
    lines = [
        "| graph | llmrank | fastest correct library | times | fastest by hand | times |",
        "| --- | ---: | --- | ---: | --- | ---: |",
    ]
    for case in speed["cases"]:
        own = _ranked(case)
        cells = [f"{GRAPHS[case['name']]}, {_rounded(case['edges'] / 1e6)} M edges", _timed(own)]
        for by_hand in (False, True):
            built, alone = (quickest(case, RANKED_TO, key, by_hand=by_hand) for key in (building_and_solving, solving))
            one = built["name"] == alone["name"]
            cells.append(_named(built) + ("" if one else f"; {_named(alone)}"))
            ratios = building_and_solving(built) / building_and_solving(own), solving(alone) / solving(own)
            cells.append(f"**{_rounded(ratios[0])}** ({_rounded(ratios[1])})")
        lines.append(f"| {' | '.join(cells)} |")
    return {"libraries": "\n".join(lines)}


def _ranked(case: dict[str, Any]) -> dict[str, Any]:
    """Return our own row of a graph, solved to RANKED_TO."""
    return next(row for row in case["rows"] if row["library"] == "llmrank" and row["target"] == RANKED_TO)


def _named(row: dict[str, Any]) -> str:
    return f"{row['name']}, {_timed(row)}"


def _timed(row: dict[str, Any]) -> str:
    return f"{_ms(building_and_solving(row))} ({_ms(solving(row))})"


def _ms(seconds: float) -> str:
    return f"{_rounded(seconds * 1e3)} ms"


def _rounded(value: float) -> str:
    """Write a number with two digits or, from ten on, with those of its whole part."""
    return f"{value:,.{0 if value >= 9.95 else 1 if value >= 0.995 else 2}f}"


def quality(results: dict[str, Any]) -> dict[str, str]:
    """Return both tables of perplexities, by the names of their marks."""
    dense = results["dense"]
    heading = f"| perplexity on test, dense {dense['test']:.2f}; removed: | {' | '.join(f'{a:.0%}' for a in AMOUNTS)} "
    heading += f"| end of valid ({dense['valid']:.2f}), {CHOSEN_AT:.0%} |"
    rule = "| --- |" + " ---: |" * (len(AMOUNTS) + 1)
    tables = {}
    for name, lines in (("as cut", AS_CUT), ("repaired", REPAIRED)):
        found = [heading, rule]
        for label, keys in lines.items():
            found.append(_line(label, keys, results["rows"], repaired=name == "repaired"))
        tables[name] = "\n".join(line for line in found if line)
    return tables


def _line(label: str, keys: list[str], rows: dict[str, Any], *, repaired: bool) -> str:
    """Return a row of a table; an empty string if none of it was measured."""
    entries = {amount: _best(keys, rows, amount, repaired=repaired) for amount in AMOUNTS}
    if not any(entries.values()):
        return ""
    cells = [_cell(entry, "test") for entry in entries.values()] + [_cell(entries[CHOSEN_AT], "valid")]
    return f"| {' | '.join([label, *cells])} |"


def _cell(row: dict[str, Any] | None, text: str) -> str:
    """Return a perplexity; an empty string if it was not measured."""
    return "" if row is None else _number(row[text])


def _best(keys: list[str], rows: dict[str, Any], amount: float, *, repaired: bool) -> dict[str, Any] | None:
    found = [_row(rows, key if repaired else f"{key} | none", amount) for key in keys]
    return min((row for row in found if row), key=lambda row: float(row["valid"]), default=None)


def _row(rows: dict[str, Any], key: str, amount: float) -> dict[str, Any] | None:
    """Find a row by its amount and by its key without the amount, which stands between budget and repair."""
    start, _, repair = key.rpartition(" | ")
    return rows.get(f"{start} | {amount} | {repair}")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 500 else f"{value:.2f}"


def domains(results: dict[str, Any]) -> dict[str, str]:
    """Return the table of perplexities on text of another kind, by the name of its marks.

    The head of a column names the calibration text, then the evaluation text.
    """
    places = [(way, text) for way, found in results["ways"].items() for text in found.get("dense", ())]
    dense = {text: results["ways"][way]["dense"][text] for way, text in places}
    said = ", ".join(f"{value:.2f} on {text}" for text, value in dense.items())
    lines = [
        f"| {CHOSEN_AT:.0%} removed, perplexity, dense {said} | {' | '.join(map(' -> '.join, places))} |",
        "| --- |" + " ---: |" * len(places),
    ]
    for label, key in OUT_OF_DOMAIN.items():
        found = {way: _row(results["ways"][way]["rows"], key, CHOSEN_AT) for way, _ in places}
        if any(found.values()):
            lines.append(f"| {label} | {' | '.join(_cell(found[way], text) for way, text in places)} |")
    return {"out of domain": "\n".join(lines)}


def experts(results: dict[str, Any]) -> dict[str, str]:
    """Return the table of perplexities of a mixture, by the name of its marks: a row for each score and repair."""
    rows, made = results["rows"], results["variants"]
    columns = sorted({(row["target"], row["amount"]) for row in rows.values()})
    head = " | ".join(f"{amount:.1%} of {target}" for target, amount in columns)
    lines = [
        f"| perplexity on test, mixture {made['mixture']['test']['perplexity']:.2f} | {head} |",
        "| --- |" + " ---: |" * len(columns),
    ]
    for score, repair in dict.fromkeys((row["score"], row["repair"]) for row in rows.values()):
        found = [rows.get(f"{target} | {amount} | {repair} | {score}") for target, amount in columns]
        cells = ["" if row is None else _number(row["test"]["perplexity"]) for row in found]
        lines.append(f"| {score}{'' if repair == 'none' else f', {repair}'} | {' | '.join(cells)} |")
    return {"experts": "\n".join(lines)}


def heads(results: dict[str, Any]) -> dict[str, str]:
    """Return the table of what heads cost, by the name of its marks: nats per token more than the dense model, on both texts."""
    columns: list[tuple[str, float]] = []
    rows: dict[tuple[str, str, str], dict[tuple[str, float], str]] = {}
    for model, found in results["models"].items():
        for row in (each for each in found["rows"] if each["text"] == TEXTS[0]):
            column = model.removesuffix(".Q4_1"), row["amount"]
            columns += [column] if column not in columns else []
            cells = [_lost(kind_of(row, kind), kind_of(found["dense"], kind)) for kind in KINDS]
            rows.setdefault((row["scorer"], row["budget"], row["repair"]), {})[column] = ", ".join(cells)
    order = {
        pair: place
        for place, pair in enumerate(product(ROWS_OF_HEADS, ("sensitivity", "least-loss", "global", "local")))
    }
    lines = [
        f"| nats more than the dense model on prose, on Python | {' | '.join(f'{m}, {a:.0%}' for m, a in columns)} |",
        f"| --- |{' ---: |' * len(columns)}",
    ]
    for (scorer, budget, repair), cells_of in sorted(
        rows.items(), key=lambda item: (item[0][2] != "none", order[item[0][:2]])
    ):
        label = f"{scorer}, {budget}{'' if repair == 'none' else ', repaired'}"
        lines.append(f"| {label} | {' | '.join(cells_of.get(column, '') for column in columns)} |")
    return {"heads": "\n".join(lines)}


def blocks(results: dict[str, Any]) -> dict[str, str]:
    """Return the table of what blocks cost, by the name of its marks: nats per token more than the dense model, on both texts."""
    columns = [
        (model, amount, repair)
        for model, found in results["models"].items()
        for amount in sorted({row["amount"] for row in found["rows"]})
        for repair in STAGES
        if any((row["amount"], row["repair"]) == (amount, repair) for row in found["rows"])
    ]
    heads = [f"{m.removesuffix('.Q4_1')}, {a:.0%}, {STAGES[r].partition(',')[0]}" for m, a, r in columns]
    lines = [
        f"| nats more than the dense model on prose, on Python | {' | '.join(heads)} |",
        f"| --- |{' ---: |' * len(heads)}",
    ]
    for choice in (*CHOICES, *NEURONS, TWO_SSP):
        cells = []
        for model, amount, repair in columns:
            found = results["models"][model]
            rows = [r for r in found["rows"] if (r["choice"], r["amount"], r["repair"]) == (choice, amount, repair)]
            lost = [_lost(kind_of(row, kind), kind_of(found["dense"], kind)) for row in rows for kind in KINDS]
            cells.append(", ".join(lost))
        lines += [f"| {choice} | {' | '.join(cells)} |"] if any(cells) else []
    return {"blocks": "\n".join(lines)}


def _lost(row: dict[str, Any], dense: dict[str, Any]) -> str:
    pairs = zip(row["losses"], dense["losses"], strict=True)
    change = Estimate.of([one - two for one, two in pairs], row["counts"])
    return f"{change.value:.2f} ± {change.error:.2f}"


def reproducibility(results: dict[str, Any]) -> dict[str, str]:
    """Return the table of what each way to run changes, by the name of its marks."""
    rows = [row for row in results["rows"] if "same_bits" in row]
    models = list(dict.fromkeys(row["model"] for row in rows))
    found = {(row["name"], row["model"]): _change(row) for row in rows}
    lines = [f"| run | compared with | {' | '.join(models)} |", f"| --- | --- |{' --- |' * len(models)}"]
    for name, other in dict.fromkeys((row["name"], row["compared_with"]) for row in rows):
        lines.append(f"| {name} | {other} | {' | '.join(found[name, model] for model in models)} |")
    return {"reproducibility": "\n".join(lines)}


def _change(row: dict[str, Any]) -> str:
    if row["same_bits"]:
        return "the same bits"
    if row["masks_differ"]:
        scorer = "" if row["same_scorer"] else ", another scorer"
        return f"{row['masks_differ']:,} of {row['neurons']:,} masks differ{scorer}"
    return f"the same masks, weights {row['weights_differ']:.0e}"


def filled(text: str, tables: dict[str, str]) -> str:
    """Write every table into a text, between the marks ``<!-- NAME -->`` and ``<!-- end of NAME -->``."""
    for name, table in tables.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"expected the marks {begin} and {end} once each; put them where the table belongs")
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{table}\n{end}{rest.split(end)[1]}"
    return text


def current() -> dict[Path, tuple[str, str]]:
    """Return the text of every page as it is, and as it should be by the results."""
    names = (
        "quality",
        "out_of_domain",
        "compact",
        "speed",
        "experts",
        "across",
        "healing",
        "heads",
        "blocks",
        "reproducibility",
    )
    found = {name: json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")) for name in names}
    tables = {
        **gains(*(found[name] for name in ("quality", "compact", "speed", "across", "healing", "heads"))),
        **quality(found["quality"]),
        **domains(found["out_of_domain"]),
        **experts(found["experts"]),
        **libraries(found["speed"]),
        **heads(found["heads"]),
        **blocks(found["blocks"]),
        **reproducibility(found["reproducibility"]),
    }
    pages = {}
    for page, shown in PAGES.items():
        text = (ROOT / page).read_text(encoding="utf-8")
        pages[ROOT / page] = text, filled(text, {name: tables[name] for name in shown})
    return pages


def commands_in(result: Any) -> set[str]:
    """Return the commands that parts of a result were made by."""
    if isinstance(result, list):
        return set().union(*map(commands_in, result))
    if not isinstance(result, dict):
        return set()
    own = {result["command"]} if isinstance(result.get("command"), str) else set()
    return own.union(*map(commands_in, result.values()))


def unreadable_commands(results: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the commands that results were made by; `results` has them by name.

    A command is read by the parser of its benchmark, and nothing runs.
    """
    wrong = []
    for name, command in (
        (name, command) for name, result in results.items() for command in sorted(commands_in(result))
    ):
        try:
            python, minus_m, module, *arguments = shlex.split(command)
            if (python, minus_m) != ("python", "-m") or not module.startswith("benchmarks."):
                raise ValueError("no command of a benchmark")
            main = importlib.import_module(module).main
        except (ValueError, ImportError, AttributeError) as error:
            wrong.append(f"{name}: {command}: {error}")
            continue
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                read_arguments(main, arguments)
        except SystemExit:
            wrong.append(f"{name}: {command}: {said.getvalue().strip().rpartition(chr(10))[2]}")
    return wrong


def read_arguments(main: Callable[[], object], arguments: Sequence[str]) -> None:
    """Let a program read its arguments, and stop it there; SystemExit says that it does not take them."""

    class Read(Exception):  # noqa: N818 -- it ends the program that has read its arguments
        pass

    def parse(parser: argparse.ArgumentParser, *_: Any) -> argparse.Namespace:
        parse_args(parser, list(arguments))
        raise Read

    parse_args = argparse.ArgumentParser.parse_args
    with mock.patch.object(argparse.ArgumentParser, "parse_args", parse), contextlib.suppress(Read):
        main()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with status 1 if something differs")
    pages = current()
    if parser.parse_args().check:
        wrong = [
            f"{path.relative_to(ROOT)} differs from the results"
            for path, (text, wanted) in pages.items()
            if text != wanted
        ]
        wrong += unreadable_commands(
            {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
        )
        print("\n".join(wrong) or "all pages and commands are right")
        return int(bool(wrong))
    for path, (_, text) in pages.items():
        write(path, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
