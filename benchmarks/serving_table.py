"""The results of ``python -m benchmarks.serving`` in markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["table"]


def table(results: dict[str, Any]) -> str:
    """Return the results in markdown."""
    machine, protocol, sizes, rows = (
        results["provenance"],
        results["protocol"],
        results["protocol"]["sizes"],
        results["rows"],
    )
    lines = [
        f"{protocol['model']}. {machine['cpu']}, {sizes['threads']} thread(s) of {machine['cores']} cores.",
        f"llama-cpp-python {protocol['llama.cpp']['llama-cpp-python']}, transformers {machine['transformers']}.",
    ]
    lines += [protocol["note"]] * bool(protocol["note"])
    lines += _block(
        "The same tokens as transformers",
        f"Every file against its own checkpoint in transformers, in float32: {sizes['sequences']} sequences of "
        f"{sizes['length']} tokens, and {sizes['prompts']} prompts of {sizes['prompt_length']} tokens, continued by "
        f"{sizes['new_tokens']}. Gap: between the two likeliest tokens (logits of transformers), where a continuation departs. "
        "There: in transformers.",
        ("checkpoint", "format"),
        (
            "same likeliest token",
            "equal continuations",
            "tokens in common",
            "median, largest gap",
            "perplexity",
            "there",
        ),
        (_agreement(row, form, file) for row, form, file in _files(rows)),
    )
    lines += _block(
        "Size and speed",
        f"Reading a prompt of {sizes['read']} tokens, and writing {sizes['written']} tokens. Speed-up against the dense file of "
        f"the same format: median of {sizes['rounds']} rounds, and quartiles.",
        ("checkpoint", "format"),
        ("MB", "of dense", "read, tokens/s", "speed-up", "written, tokens/s", "speed-up"),
        (_speed(row, form, file, rows[0]) for row, form, file in _files(rows) if "speed" in file),
    )
    lines += _block(
        "Types of the tensors",
        "llama.cpp replaces a type where the rows of a matrix are no multiple of its blocks (256 for K-quants, 32 for Q8_0).",
        ("checkpoint", "format", "types of ffn_down", "replaced"),
        (),
        (_types(row, form, file) for row, form, file in _files(rows) if form not in ("f32", "f16")),
    )
    lines += _block(
        "What vLLM reads",
        "By `benchmarks/stock.py`, without vLLM. GPUs: into how many equal parts width and heads can be split, up to 8.",
        ("checkpoint", "architecture", "problems"),
        ("width", "experts", "GPUs"),
        (_stock(row) for row in rows),
    )
    return "\n".join(lines) + "\n"


def _files(rows: Iterable[dict[str, Any]]) -> list[tuple[dict[str, Any], str, dict[str, Any]]]:
    """Return checkpoint, format and file, ordered by format."""
    found = [(row, form, file) for row in rows for form, file in row["files"].items()]
    forms = list(dict.fromkeys(form for _, form, _ in found))
    return sorted(found, key=lambda entry: forms.index(entry[1]))


def _block(
    title: str, text: str, names: Sequence[str], numbers: Sequence[str], lines: Iterable[Sequence[str]]
) -> list[str]:
    head = [f"| {' | '.join([*names, *numbers])} |", f"|{' --- |' * len(names)}{' ---: |' * len(numbers)}"]
    return ["", f"# {title}", "", text, "", *head, *(f"| {' | '.join(line)} |" for line in lines)]


def _agreement(row: dict[str, Any], form: str, file: dict[str, Any]) -> list[str]:
    greedy = file["greedy"]
    gaps = sorted(greedy["gaps"])
    return [
        row["label"],
        form,
        f"{file['same_likeliest']:.2%}",
        f"{greedy['equal']} of {len(greedy['common'])}",
        f"{greedy['common_tokens']:,} of {greedy['tokens']:,}",
        f"{gaps[len(gaps) // 2]:.3f}, {gaps[-1]:.3f}" if gaps else "",
        f"{file['perplexity']:.3f}",
        f"{row['perplexity']:.3f}",
    ]


def _speed(row: dict[str, Any], form: str, file: dict[str, Any], dense: dict[str, Any]) -> list[str]:
    found = [row["label"], form, f"{file['bytes'] / 1e6:.1f}", f"{file['bytes'] / dense['files'][form]['bytes']:.1%}"]
    for what in ("read", "write"):
        speed = file["speed"][what]
        low, high = speed["quartiles"]
        found += [f"{speed['tokens_per_second']:,.0f}", f"{speed['speedup']:.2f} ({low:.2f} to {high:.2f})"]
    return found


def _types(row: dict[str, Any], form: str, file: dict[str, Any]) -> list[str]:
    down = {name: count for part, types in file["types"].items() if "ffn_down" in part for name, count in types.items()}
    replaced = [f"{count} {what}" for what, count in file["replaced"].items()]
    return [row["label"], form, ", ".join(f"{c} {n}" for n, c in down.items()), "; ".join(replaced) or "none"]


def _stock(row: dict[str, Any]) -> list[str]:
    stock = row["stock"]
    problems = "; ".join(stock["problems"]) or "none"
    gpus = ", ".join(map(str, stock["parallel"]))
    return [row["label"], stock["architecture"], problems, str(stock["width"]), str(stock["experts"] or ""), gpus]
