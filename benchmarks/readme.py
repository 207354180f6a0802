"""The tables of the README that come from results: written between their marks, from the committed JSON.

Run it as ``python -m benchmarks.readme`` after a result has changed; the tests refuse a README that says something else.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.provenance import write
from benchmarks.quality import EARLIER, is_earlier

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
AMOUNTS = (0.1, 0.2, 0.3, 0.5)
# What the end of valid, by which settings are chosen, is shown of.
CHOSEN_AT = 0.3

# Label -> the rows that it stands for; of several the best on the end of valid, as their users would choose.
AS_CUT = {
    "**weighted PageRank, `--pruner sensitivity`**": ["ffn | weighted pagerank | isolated | sensitivity"],
    "weighted PageRank, local (what the default cuts)": ["ffn | weighted pagerank | isolated | local"],
    "weighted PageRank, global": ["ffn | weighted pagerank | isolated | global"],
    "modified PageRank, local": ["ffn | modified pagerank | isolated | local"],
    "weighted PageRank, residual graph with attention, local": [
        "ffn | weighted pagerank | residual, attention | local"
    ],
    "weighted PageRank with what neurons explain, sensitivity": [
        "ffn | weighted pagerank, explained | isolated | sensitivity"
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
# The one row that comes from another calibration, and so from another file.
MORE_TEXT = "`--pruner sensitivity --reselect`, calibrated on 240 sequences"
REPAIRED = {
    "**`llmrank prune --calibration valid.txt --samples 64`**: weighted PageRank, local, least squares": [
        "ffn | weighted pagerank | isolated | local | lstsq"
    ],
    "the same, `--pruner sensitivity`": ["ffn | weighted pagerank | isolated | sensitivity | lstsq"],
    "Wanda-sp (L1), our global budget": ["ffn | wanda-sp (L1) | isolated | global | lstsq"],
    "optipfair, MAW with data": ["peer | optipfair, MAW with data |  | local | lstsq"],
    "FLAP's score, global": ["ffn | flap | isolated | global | lstsq"],
    "`llmrank prune --calibration valid.txt --samples 64 --reselect`": [
        "ffn | weighted pagerank | isolated | local | lstsq (reselect)"
    ],
    "`llmrank prune --calibration valid.txt --samples 64 --reselect --pruner sensitivity`": [
        "ffn | weighted pagerank | isolated | sensitivity | lstsq (reselect)"
    ],
    MORE_TEXT: ["ffn | weighted pagerank | isolated | sensitivity | lstsq (reselect)"],
    "Wanda-sp (L1), local, `--reselect`": ["ffn | wanda-sp (L1) | isolated | local | lstsq (reselect)"],
    "Wanda-sp (L2), local, `--reselect` (Optimal Brain Surgeon's order)": [
        "ffn | wanda-sp (L2) | isolated | local | lstsq (reselect)"
    ],
    "weighted PageRank, local, to each FFN's own outputs": [
        "ffn | weighted pagerank | isolated | local | lstsq (output)"
    ],
    "weighted PageRank, sensitivity, bias alone": ["ffn | weighted pagerank | isolated | sensitivity | bias"],
    "FLAP, global, with its bias": ["ffn | flap | isolated | global | bias"],
}

# Label -> the row of out_of_domain.json that it stands for.
OUT_OF_DOMAIN = {
    "**as by default**: weighted PageRank, local, least squares": "ffn | weighted pagerank | isolated | local | lstsq",
    "the same, `--target output`": "ffn | weighted pagerank | isolated | local | lstsq (output)",
    "the same, `--reselect`": "ffn | weighted pagerank | isolated | local | lstsq (reselect)",
    "the same, `--pruner sensitivity`": "ffn | weighted pagerank | isolated | sensitivity | lstsq",
    "optipfair, MAW with data, with our least squares": "peer | optipfair, MAW with data |  | local | lstsq",
    "Wanda-sp (L1), our global budget, with our least squares": "ffn | wanda-sp (L1) | isolated | global | lstsq",
    "as cut: weighted PageRank, local": "ffn | weighted pagerank | isolated | local | none",
    "as cut: weighted PageRank, `--pruner sensitivity`": "ffn | weighted pagerank | isolated | sensitivity | none",
    "as cut: optipfair, MAW with data": "peer | optipfair, MAW with data |  | local | none",
    "as cut: Wanda-sp (L1), our global budget": "ffn | wanda-sp (L1) | isolated | global | none",
}


def quality(results: dict[str, Any], more: dict[str, Any]) -> dict[str, str]:
    """Both tables of what is left of a model, by the name of their marks."""
    dense = results["dense"]
    heading = f"| perplexity on test, dense {dense['test']:.2f}; removed: | {' | '.join(f'{a:.0%}' for a in AMOUNTS)} "
    heading += f"| end of valid ({dense['valid']:.2f}), {CHOSEN_AT:.0%} |"
    rule = "| --- |" + " ---: |" * (len(AMOUNTS) + 1)
    tables = {}
    for name, lines in (("as cut", AS_CUT), ("repaired", REPAIRED)):
        found = [heading, rule]
        for label, keys in lines.items():
            source = more if label == MORE_TEXT else results
            found.append(_line(label, keys, source["rows"], repaired=name == "repaired"))
        tables[name] = "\n".join(line for line in found if line)
    return tables


def _line(label: str, keys: list[str], rows: dict[str, Any], *, repaired: bool) -> str:
    """A row of a table; empty where nothing of it was measured."""
    entries = {amount: _best(keys, rows, amount, repaired=repaired) for amount in AMOUNTS}
    if not any(entries.values()):
        return ""
    cells = [_cell(entry, "test") for entry in entries.values()] + [_cell(entries[CHOSEN_AT], "valid")]
    return f"| {' | '.join([label, *cells])} |"


def _cell(row: dict[str, Any] | None, text: str) -> str:
    """A perplexity, marked where it was repaired as it was done before; empty where nothing was measured."""
    return "" if row is None else _number(row[text]) + (EARLIER if is_earlier(row) else "")


def _best(keys: list[str], rows: dict[str, Any], amount: float, *, repaired: bool) -> dict[str, Any] | None:
    found = [_row(rows, key if repaired else f"{key} | none", amount) for key in keys]
    return min((row for row in found if row), key=lambda row: float(row["valid"]), default=None)


def _row(rows: dict[str, Any], key: str, amount: float) -> dict[str, Any] | None:
    """The row of an amount, by a key that lacks just that, between its budget and its repair."""
    start, _, repair = key.rpartition(" | ")
    return rows.get(f"{start} | {amount} | {repair}")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 500 else f"{value:.2f}"


def domains(results: dict[str, Any]) -> dict[str, str]:
    """What is left of a model on text of another kind, by the name of its marks: what it was calibrated on, then evaluated on."""
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


def filled(text: str, tables: dict[str, str]) -> str:
    """A text with every table between its marks ``<!-- NAME -->`` and ``<!-- end of NAME -->``."""
    for name, table in tables.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"expected the marks {begin} and {end} once each; put them where the table belongs")
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{table}\n{end}{rest.split(end)[1]}"
    return text


def current() -> tuple[str, str]:
    """The README as it is, and as the results would have it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    names = ("quality", "quality_240", "out_of_domain")
    found, more, away = (json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")) for name in names)
    return text, filled(text, {**quality(found, more), **domains(away)})


def main() -> None:
    _, text = current()
    write(ROOT / "README.md", text)


if __name__ == "__main__":
    main()
