"""What a short training brings back of the loss of a cut: by tokens, by kind of text, and by who chose the neurons.

Run it as ``python -m benchmarks.healing --wikitext DIR --model A --model B --tokens 65536,1048576 --checkpoints DIR``. Each model
is cut, repaired and evaluated as in ``benchmarks.across``, and every row heals a copy of that. A row has its difference from the
repaired model in nats per token, and the standard error of that difference over sequences. A run continues its own result file
and, with ``--checkpoints``, the trainings that were interrupted.
"""

from __future__ import annotations

import argparse
import copy
import math
import shutil
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from statistics import mode
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import torch

from benchmarks.across import DEFAULT, ITEMS, KINDS, PEER, RESULTS, Study, cell, kind_of, perplexity_of, share_right
from benchmarks.result_files import opened, write_results
from benchmarks.wikitext import add_wikitext, articles_behind, check_wikitext
from llmrank.cli.demo_models import demo_model
from llmrank.execution import Execution
from llmrank.healing import DenseModel, Distillation, Healing, Predictions, heal_model, predict_tokens
from llmrank.healing.ledger import LedgerRow
from llmrank.inspection.figures import save_figure
from llmrank.inspection.healing import draw_healing
from llmrank.pipeline.heal import healing_tokens
from llmrank.pipeline.texts import CalibrationText
from llmrank.text import CalibrationTokens

AMOUNT = 0.3
# The model before healing, the plain script, and the default that learns from what the dense model has written to a file.
REPAIRED, PLAIN, FROM_FILE = "repaired only", "the Trainer on next tokens", "llmrank from a file of predictions"
# Calibration sequences of a row that names no other number.
SAMPLES = 16
# Who chooses the neurons, or heals otherwise -> the scorer and the text that it is calibrated on.
CONTENDERS = {
    "llmrank": DEFAULT[::2],
    "activation": ("activation", DEFAULT[2]),
    "Wanda-sp": ("wanda-sp", DEFAULT[2]),
    "FLAP": ("flap", DEFAULT[2]),
    "optipfair": (PEER, DEFAULT[2]),
    PLAIN: DEFAULT[::2],
    FROM_FILE: DEFAULT[::2],
}
# Fewer tokens are spent on what Adam's first steps spoil.
FITTED = 65_536
# Beyond this many times, reading a text again teaches less than other text.
READ_AGAIN = 1.5
# Text to learn from: WikiText-2's valid behind the calibration sequences, with a sixth of the built-in text; that and articles of
# its test that are not evaluated; what the dense model writes, with a sixth of the built-in text; or that text alone.
OWN = ("own", "longer")
TEXTS = (*OWN, "written", "built-in")
HEAD = (
    f"Perplexity without {AMOUNT:.0%} of the hidden neurons, repaired and then healed with a number of tokens. In brackets the "
    "difference from the repaired model of the same neurons in nats per token, and its standard error, paired over sequences: a "
    "difference of less than two errors says nothing. WikiText-2's test is text of the kind that calibrates; the source code of "
    "Python's standard library is text of another kind. Calibration and repair have read 16 sequences, or as many as a row says, "
    "and a fifth as many of the built-in text. Items: the share of those that the dense model answers right. 'Own' text to learn "
    "from is WikiText-2's valid behind the calibration sequences, and a sixth of the built-in text; 'longer' text goes on with "
    "the articles of WikiText-2's test that are not evaluated; 'written' is what the dense model writes, and a sixth of the "
    "built-in text; 'built-in' is Python's language reference alone."
)


def beginning(contender: str, samples: int) -> str:
    """Return what the labels of the rows begin with that share a repaired model."""
    return contender if samples == SAMPLES else f"{contender}, {samples} sequences"


def parts(label: str) -> tuple[str, int, str, int]:
    """Return the contender, the calibration sequences, the text (or REPAIRED) and the tokens of a row."""
    who, text, *tokens = label.split(" | ")
    contender, _, samples = who.partition(", ")
    return contender, int(samples.split()[0]) if samples else SAMPLES, text, int(tokens[0]) if tokens else 0


def most_healed(rows: Mapping[str, Any]) -> str | None:
    """Return the label of the default that was repaired on most sequences of its own text, and then healed with most tokens."""
    own = _with_own_text(rows)
    return max(own, key=lambda label: parts(label)[1::2], default=None)


def _with_own_text(rows: Mapping[str, Any]) -> list[str]:
    """Return the labels of the default that was healed with its own text, without those that read it again and again."""

    def is_new(label: str) -> bool:
        there = rows[label].get("healing", {}).get("text", {}).get("tokens", math.inf)
        return bool(parts(label)[3] <= READ_AGAIN * there)

    own = [label for label in rows if parts(label)[0] == "llmrank" and parts(label)[2] in OWN]
    return [label for label in own if is_new(label)]


def start_of(label: str) -> str:
    """Return the label of the repaired model that a row begins with."""
    contender, samples, *_ = parts(label)
    return f"{beginning('llmrank' if contender in (PLAIN, FROM_FILE) else contender, samples)} | {REPAIRED}"


def plain_training(model: Any, text: CalibrationTokens, directory: str) -> None:
    """Train on the next tokens of a text, as a script of transformers' users does it, without a dense model."""
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        directory,
        num_train_epochs=1,
        per_device_train_batch_size=4,
        learning_rate=5e-5,  # the Trainer's own
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    rows = [{"input_ids": ids, "labels": ids} for ids in text.sequences.ids]
    Trainer(model, arguments, train_dataset=rows).train()
    model.eval()


def written_predictions(dense: Any, text: CalibrationTokens, execution: Execution) -> Predictions:
    """Return the predictions of the dense model for a text, written to a file and read again."""
    with TemporaryDirectory() as directory:
        path = Path(directory) / "predictions"
        predict_tokens(dense, text, execution).save(path)
        return Predictions.read(path)


def text_to_heal(study: Study, dense: Any, source: Any, tokens: int, length: int) -> Any:
    """Return the sequences to learn from, and notes; `source` is a text, or what :class:`CalibrationText` takes."""
    calibration = CalibrationText(source, sequence_length=length)
    return healing_tokens(calibration, tokens, dense, study.tokenizer, study.tokens[DEFAULT[2]].known)


def own_text(options: argparse.Namespace) -> str:
    """Return the text that calibration reads the beginning of."""
    text: str = (options.wikitext / "valid.txt").read_text(encoding="utf-8")
    return text.replace("<unk>", "unk")


class Start:
    """One model, cut and repaired, that each row begins with."""

    def __init__(self, study: Study, dense: Any, contender: str) -> None:
        self.study, self.dense = study, dense
        scorer, text = CONTENDERS[contender]
        self.chosen = scorer
        if scorer == DEFAULT[0]:
            study.calibrate(text)
            self.chosen = study.choice(text, AMOUNT).chosen
        self.application, self.said = study.cut(self.chosen, "local", text, AMOUNT, "lstsq")

    def text(self, kind: str, tokens: int, options: argparse.Namespace) -> Any:
        """Return the sequences to learn from, and notes."""
        sources = {"written": "generated", "built-in": "built-in"}
        if kind in ("own", "longer"):
            source: Any = own_text(options)
            if kind == "longer":
                evaluated = options.evaluate * options.sequence_length
                source += articles_behind(options.wikitext / "test.txt", self.study.tokenizer, evaluated)
        else:
            source = sources[kind]
        return text_to_heal(self.study, self.dense, source, tokens, options.sequence_length)

    def healed(
        self, contender: str, kind: str, tokens: int, options: argparse.Namespace, directory: Path | None
    ) -> dict[str, Any]:
        """Heal a copy, and evaluate it."""
        begun, model, found = perf_counter(), copy.deepcopy(self.study.model), self.text(kind, tokens, options)
        row: dict[str, Any] = {}
        if contender == PLAIN:
            with TemporaryDirectory() as work:
                plain_training(model, found[0], work)
        else:
            execution = Execution(batch_size=options.batch_size)
            text, notes = found
            teacher = (
                written_predictions(self.dense, text, execution) if contender == FROM_FILE else DenseModel(self.dense)
            )
            healing = heal_model(model, teacher, text, Distillation(tokens), execution, directory, notes)
            row["healing"] = healing.to_dict()
        seconds = round(
            perf_counter() - begun, 1
        )  # of this run: less than the training took if it went on from a state
        return {**row, **self.study.losses(model), "seconds": seconds}


def measure(study: Study, found: dict[str, Any], options: argparse.Namespace, save: Callable[[], None]) -> None:
    """Measure the rows of one model that are missing, and save after each."""
    dense = copy.deepcopy(study.model)
    if "dense" not in found:
        found["dense"] = study.losses()
    rows = found["rows"]
    for contender in options.contenders.split(","):
        asked = [
            (f"{beginning(contender, options.samples)} | {kind} | {tokens}", kind, tokens)
            for kind, tokens in product(options.texts.split(","), map(int, options.tokens.split(",")))
        ]
        if all(name in rows for name, *_ in asked):
            continue
        start = Start(study, dense, contender)
        try:
            before = start_of(asked[0][0])
            if before not in rows:
                rows[before] = {"scorer": start.chosen, **start.said, **study.losses()}
                save()
            for name, kind, tokens in asked:
                if name not in rows:
                    place = (options.name, beginning(contender, options.samples), kind, str(tokens))
                    directory = options.checkpoints and options.checkpoints.joinpath(*place)
                    rows[name] = start.healed(contender, kind, tokens, options, directory)
                    save()
                    if directory is not None:
                        shutil.rmtree(directory, ignore_errors=True)
                    print(name, *(f"{perplexity_of(kind_of(rows[name], text)):.2f}" for text in KINDS), flush=True)
        finally:
            start.application.undo()


def draw(results: dict[str, Any], directory: Path) -> None:
    """Draw the ledger of each model's longest healing with its own text."""
    for name, found in results["models"].items():
        label = most_healed(found["rows"])
        if label is not None:
            ledger = found["rows"][label]["healing"]
            rows = tuple(LedgerRow.of_dict(each) for each in ledger["rows"])
            healing = Healing(rows, ledger["chosen"], ledger["settings"], ledger["text"])
            save_figure(draw_healing(healing), directory, f"healing_{name}", ["png"])


def table(results: dict[str, Any]) -> str:
    """Return all models in markdown."""
    lines = [HEAD]
    for name, found in results["models"].items():
        dense, rows = found["dense"], found["rows"]
        perplexities = [f"{perplexity_of(kind_of(dense, kind)):.2f}" for kind in KINDS]
        lines += ["", f"## {name}", "", f"| neurons, text, tokens | {' | '.join(KINDS)} | items | seconds |"]
        lines += ["| --- | ---: | ---: | ---: | ---: |", f"| dense | {' | '.join(perplexities)} | 100.0% | |"]
        for label in sorted(rows, key=_place):
            start, row = rows[start_of(label)], rows[label]
            cells = [cell(kind_of(row, kind), kind_of(start, kind), dense) for kind in KINDS]
            seconds = f"{row['seconds']:,.0f}" if "seconds" in row else ""
            contender, samples, text, tokens = parts(label)
            what = f"{beginning(contender, samples)}, {text}{f', {tokens:,}' if tokens else ''}"
            lines.append(f"| {what} | {' | '.join(cells)} | {share_right(row[ITEMS], dense[ITEMS])} | {seconds} |")
        lines += ["", *forecast(rows, dense)]
    return "\n".join(lines).rstrip() + "\n"


def forecast(rows: dict[str, Any], dense: dict[str, Any]) -> list[str]:
    """Return a sentence on how many tokens would close half of what is left on text of the first kind, if a fit goes on.

    The loss above that of the dense model is fitted by a power of the number of tokens, over the longest run of rows that differ
    in nothing else, without those that read their text again and again. Errors are those of a jackknife over the sequences.
    """
    own = [(*parts(label)[1::2], label) for label in _with_own_text(rows) if parts(label)[3] >= FITTED]
    # Ties go to the larger number of calibration sequences.
    most = mode(sorted((samples for samples, *_ in own), reverse=True)) if own else 0
    found = sorted((tokens, label) for samples, tokens, label in own if samples == most)
    if len(found) < 2:
        return []
    logs = np.log([tokens for tokens, _ in found])
    lost = np.array([np.subtract(rows[label]["losses"], dense["losses"]) for _, label in found])

    def exponent(left_out: int | None = None) -> float:
        kept = [k for k in range(lost.shape[1]) if k != left_out]
        above = lost[:, kept].sum(1)
        return float(np.polyfit(logs, np.log(above), 1)[0]) if bool((above > 0).all()) else math.nan

    n = lost.shape[1]
    each = np.array([exponent(k) for k in range(n)])
    power, error = exponent(), float(np.sqrt((n - 1) / n * ((each - each.mean()) ** 2).sum()))
    if not power + error < -0.01:  # too flat to say how many times
        return []
    middle, *ends = (2.0 ** (-1.0 / value) for value in (power, power - error, power + error))
    sentence = (
        f"On {KINDS[0]} the loss above the dense model falls as the tokens to the power of {power:.2f} ± {error:.2f}, fitted to "
        f"{len(found)} rows of {most} sequences. If that goes on, {middle:.0f} times as many tokens ({ends[0]:.0f} to "
        f"{ends[1]:.0f}) close half of what {found[-1][0]:,} leave."
    )
    return [sentence]


def _place(label: str) -> tuple[int, ...]:
    contender, samples, text, tokens = parts(label)
    return list(CONTENDERS).index(contender), samples, (REPAIRED, *TEXTS).index(text), tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_wikitext(parser)
    parser.add_argument("--model", action="append", help="directory, hub name or .gguf file; default the demo model")
    parser.add_argument("--tokens", default="65536", help="numbers of tokens, with commas (%(default)s)")
    parser.add_argument("--texts", default="own", help=f"with commas: {', '.join(TEXTS)} (%(default)s)")
    parser.add_argument("--contenders", default="llmrank", help=f"with commas: {', '.join(CONTENDERS)} (%(default)s)")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="calibration sequences (%(default)s)")
    parser.add_argument("--evaluate", type=int, default=16, help="evaluation sequences (%(default)s)")
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=4, help="sequences in a forward pass (%(default)s)")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--checkpoints", type=Path, help="directory that keeps the state of interrupted trainings")
    parser.add_argument("--output", type=Path, default=RESULTS / "healing.json")
    options = parser.parse_args()
    check_wikitext(parser, options)
    numbers = {"samples": SAMPLES, "evaluate": options.evaluate, "sequence_length": options.sequence_length}
    results = opened(options.output, {**numbers, "amount": AMOUNT})

    def save() -> None:
        write_results(options.output, results, table)
        draw(results, options.output.parent)

    for source in options.model or [str(demo_model())]:
        study = Study(source, options)
        options.name = Path(source).name.removesuffix(".gguf")
        found = results.setdefault("models", {}).setdefault(options.name, {"protocol": study.protocol(), "rows": {}})
        measure(study, found, options, save)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
