"""The model card of a pruned checkpoint: a ``README.md`` with metadata for model hubs, and the license of the base model."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, try_to_load_from_cache

from llmrank.surgery.widths import WIDTHS_KEY

__all__ = ["loading_code", "needs_own_loader", "write_model_card"]

CARD_FILE = "README.md"
# Names of files beside a model that say under which terms it may be used.
LICENSE_FILES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
LICENSE_FIELDS = ("license", "license_name", "license_link")


def needs_own_loader(model: Any) -> bool:
    """Whether only :func:`llmrank.load` can load a model: its configuration lists widths, or its class is not in transformers."""
    lists_widths = getattr(model.config.get_text_config(), WIDTHS_KEY, None) is not None
    return lists_widths or not type(model).__module__.startswith("transformers.")


def loading_code(model: Any, directory: str) -> str:
    """Return the line of Python that loads a checkpoint of a model."""
    loader = type(model).__name__
    if not type(model).__module__.startswith("transformers."):
        return f'llmrank.load("{directory}", trust_remote_code=True)'
    if needs_own_loader(model):
        return f'llmrank.load("{directory}")'
    auto = "AutoModelForCausalLM" if "CausalLM" in loader or "LMHead" in loader else loader
    return f'transformers.{auto}.from_pretrained("{directory}")'


def write_model_card(directory: Path, model: Any, report: Mapping[str, Any], place: str = "PATH") -> None:
    """Write the card of a pruned model; if its base model is in a directory, copy the license files from there.

    Parameters
    ----------
    directory : Path
        Where the checkpoint is being written.
    model : transformers.PreTrainedModel
        The pruned model; ``name_or_path`` names its base model.
    report : mapping
        What :meth:`llmrank.pipeline.report.Report.to_dict` returns.
    place : str
        Where the model can be loaded from, a directory or a name on the hub.
    """
    source = str(getattr(model, "name_or_path", "") or "")
    license_fields = _license_fields_of(source)
    is_hub_name = _is_hub_name(source)
    data = ModelCardData(
        base_model=source if is_hub_name else None,
        library_name="transformers",
        tags=["pruned", "llmrank"],
        **{name: value for name, value in license_fields.items() if value},
    )
    content = f"---\n{data.to_yaml()}\n---\n\n{_text(model, report, place)}"
    (directory / CARD_FILE).write_text(content, encoding="utf-8")
    if source and Path(source).is_dir():
        for pattern in LICENSE_FILES:
            for path in Path(source).glob(pattern):
                if path.is_file():
                    shutil.copy(path, directory / path.name)


def _is_hub_name(source: str) -> bool:
    return source.count("/") == 1 and not source.startswith((".", "/", "~")) and not Path(source).exists()


def _license_fields_of(source: str) -> dict[str, Any]:
    """Return the license fields of the base model's card, if the card lies beside the model or in the cache of the hub."""
    if not source:
        return {}
    card: Any = Path(source) / CARD_FILE if Path(source).is_dir() else None
    if _is_hub_name(source):
        card = try_to_load_from_cache(source, CARD_FILE)
    if not card or not Path(str(card)).is_file():
        return {}
    try:
        found = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
    except Exception:  # a damaged card raises nearly anything, and says nothing about the license
        return {}
    return {name: found.get(name) for name in LICENSE_FIELDS}


def _text(model: Any, report: Mapping[str, Any], place: str) -> str:
    method, neurons, size = report["method"], report["neurons"], (report["before"], report["after"])
    # A path may hold anything, and a card is shown as a page.
    name, source = (escape(each["source"], quote=False) for each in (report["model"], report["calibration"]))
    rows = [
        (neurons["unit"], neurons["before"], neurons["before"] - neurons["removed"]),
        ("parameters", size[0]["parameters"], size[1]["parameters"]),
        ("bytes", size[0]["bytes"], size[1]["bytes"]),
    ]
    table = [f"| {label} | {before:,} | {after:,} | {after / before - 1.0:+.1%} |" for label, before, after in rows]
    evaluation = report.get("evaluation") or {}
    before, after = evaluation.get("before"), evaluation.get("after")
    if before and after:
        a, b = before["value"], after["value"]
        protocol = evaluation["protocol"]
        table.append(
            f"| perplexity on {escape(protocol['source'], quote=False)} | {a:,.2f} | {b:,.2f} | {b / a - 1.0:+.1%} |"
        )
    repair, calibration = method.get("repair"), report["calibration"]
    ranked = " and ".join(method.get("targets", ["neurons"]))
    left_out = neurons.get("left_out")
    how = f"its {ranked} were ranked, and the least important ones removed"
    if left_out is not None:
        how = "blocks were left out, each time the one that cost least"
    steps = [
        f"- left out: {', '.join(left_out)}"
        if left_out is not None
        else f"- ranked by {method['scorer']['name']} ({method['pipeline']} graphs), chosen by {method['pruner']['name']}",
        f"- calibrated on {calibration['sequences']} x {calibration['sequence_length']} tokens ({source})",
    ]
    if repair and report.get("repaired"):
        steps.append(f"- repaired without training by {repair['name']}")
    healing = report.get("healing")
    if healing:
        steps.append(
            f"- healed: it learned the dense model's predictions for {healing['rows'][healing['chosen']]['tokens']:,} tokens "
            f"({escape(healing['text']['source'], quote=False)}), which removed {healing['share_closed']:.0%} of its divergence"
        )
    lines = [
        f"# {name}, {neurons['share_reached']:.1%} of the {neurons['unit']} removed",
        "",
        f"This is a smaller {name}: {how}, by llmrank.",
        "",
        "```python",
        f"import {'llmrank' if needs_own_loader(model) else 'transformers'}",
        "",
        f"model = {loading_code(model, place)}{'.model' if needs_own_loader(model) else ''}",
        "```",
        "",
        "| | before | after | change |",
        "| --- | ---: | ---: | ---: |",
        *table,
        "",
        *steps,
        "",
        "`report.json` holds the whole protocol.",
    ]
    warnings = report.get("warnings") or []
    if warnings:
        lines += ["", "## Warnings", "", *(f"- {escape(sentence, quote=False)}" for sentence in warnings)]
    return "\n".join(lines) + "\n"
