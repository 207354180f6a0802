"""Serving: compact checkpoints in llama.cpp, compared with transformers and with the dense checkpoint.

Run it as ``python -m benchmarks.serving --llama-cpp DIR``; ``benchmarks/llama_cpp_runs.py`` says how to install llama.cpp. By
default the demo model is pruned to several widths; with ``--uneven`` it is pruned by budgets under which layers differ, beside
one that leaves all layers as wide. ``--dense DIR --compact DIR --compact DIR`` takes checkpoints instead, also
mixtures of experts. llama.cpp's converter writes every checkpoint as GGUF in float32 and float16, and its library quantises
the latter. Then each file is compared with transformers, in float32 on the same checkpoint:

- the likeliest next token at every position of a text, and the perplexity of that text;
- greedy continuations. After the first other token both read different texts, so the common beginning counts. With it we give
  the gap that transformers saw there between the logits of its two likeliest tokens.

Speed is that of llama.cpp, all checkpoints of a format in turn, reading a prompt and writing apart. In each round, the speed-up
is the time of the dense model divided by that of the compact one; the result is the median over the rounds. Other programs
on the machine change the times, and the ratio less.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

from benchmarks.compact import Stopwatch
from benchmarks.llama_cpp_runs import CONVERTED, FORMATS, LlamaCpp, Served, replaced_types, tensor_types
from benchmarks.provenance import provenance
from benchmarks.result_files import write_results
from benchmarks.serving_table import table
from benchmarks.stock import read_stock
from llmrank import load, prune_model
from llmrank.cli.demo_models import DEMO_NAME, demo_model
from llmrank.pipeline import CalibrationText
from llmrank.surgery import checkpoint
from llmrank.text import TokenSequences, builtin_texts, tokenise
from llmrank.text.generation import generation_settings

RESULTS = Path(__file__).parent / "results"
# Amount to remove, and what widths are a multiple of: 1075, 1088, 1024 and 1280 of the 1536 neurons of the demo model.
WIDTHS = ((0.3, 1), (0.3, 64), (0.3, 256), (0.15, 256))
# Budgets under which layers differ, by label. All but the second remove about as many parameters as the second of WIDTHS.
UNEVEN: dict[str, dict[str, Any]] = {
    "sensitivity": {"amount": 0.3, "pruner": "sensitivity"},
    "sensitivity, half as much": {"amount": 0.15, "pruner": "sensitivity"},
    "global": {"amount": 0.3, "pruner": "global"},
    "least loss": {"amount": 0.3, "pruner": "least-loss"},
    "least loss, heads too": {
        "amount": 0.17,
        "amount_of": "parameters",
        "pruner": "least-loss",
        "targets": "neurons,heads",
    },
}
# Sequences and their length, of the calibration. More text keeps more of the model, but changes no size and no speed.
SAMPLES, SAMPLE_LENGTH = 16, 256
DENSE = "dense"
# Characters of text whose tokens are compared.
TOKENISED = 4096


@dataclass(frozen=True)
class Sizes:
    """How much is compared and timed.

    Attributes
    ----------
    sequences, length : int
        Of the text whose next tokens are predicted.
    prompts, prompt_length, new_tokens : int
        Of the continuations.
    read, written : int
        Tokens of a prompt that is timed, and tokens written after its first.
    rounds : int
    threads : int
        Of llama.cpp.
    """

    sequences: int = 4
    length: int = 512
    prompts: int = 16
    prompt_length: int = 64
    new_tokens: int = 32
    read: int = 256
    written: int = 32
    rounds: int = 9
    threads: int = 1

    @property
    def context(self) -> int:
        """The longest text that llama.cpp reads or writes."""
        return max(self.length, self.prompt_length + self.new_tokens, self.read, self.written + 1)


@dataclass(frozen=True, eq=False)
class Reference:
    """What transformers computes in float32, to compare with.

    Attributes
    ----------
    likeliest : (sequences, length) int64 tensor
        The likeliest token after each.
    perplexity : float
    first : (length, vocabulary) float32 tensor
        Logits of the first sequence.
    written : list of list of int
        Greedy continuations.
    gaps : list of list of float
        Difference between the logits of the two likeliest tokens, at every token of the continuations.
    """

    likeliest: torch.Tensor
    perplexity: float
    first: torch.Tensor
    written: list[list[int]]
    gaps: list[list[float]]


def continued(model: Any, prompts: torch.Tensor, count: int) -> tuple[list[list[int]], list[list[float]]]:
    """Continue prompts of one length with the likeliest token, `count` times, and return tokens and gaps of each.

    A token that ends a text does not end it.
    """
    settings = {"do_sample": False, "max_new_tokens": count, "eos_token_id": None}
    with generation_settings(model, **settings, return_dict_in_generate=True, output_logits=True):
        output = model.generate(input_ids=prompts, attention_mask=torch.ones_like(prompts))
    best = torch.stack(output.logits, 1).float().topk(2).values
    return output.sequences[:, prompts.shape[1] :].tolist(), (best[..., 0] - best[..., 1]).tolist()


@torch.inference_mode()
def reference(model: Any, text: TokenSequences, prompts: torch.Tensor, count: int) -> Reference:
    """Compute what a checkpoint says in transformers."""
    likeliest, losses, first = [], [], None
    for ids in text.ids:
        logits = model(input_ids=ids[None], use_cache=False).logits[0].float()
        first = logits if first is None else first
        likeliest.append(logits.argmax(-1))
        losses.append(loss(logits.numpy(), ids))
    if first is None:
        raise ValueError("expected at least one sequence")
    return Reference(torch.stack(likeliest), float(np.exp(fmean(losses))), first, *continued(model, prompts, count))


def loss(logits: npt.NDArray[np.float32], ids: torch.Tensor) -> float:
    """Return the mean negative log-likelihood of the tokens of a text after its first."""
    return float(torch.nn.functional.cross_entropy(torch.from_numpy(logits[:-1]), ids[1:]))


def common(
    expected: Sequence[Sequence[int]], found: Sequence[Sequence[int]], gaps: Sequence[Sequence[float]]
) -> dict[str, Any]:
    """Compare continuations.

    Returns
    -------
    dict
        How many of them are equal; tokens of the common beginnings, of how many; the length of each common beginning; the gaps
        at the first differences.
    """
    lengths = [
        next((k for k, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), len(one))
        for one, other in zip(expected, found, strict=True)
    ]
    return {
        "equal": sum(length == len(one) for length, one in zip(lengths, expected, strict=True)),
        "common_tokens": sum(lengths),
        "tokens": sum(map(len, expected)),
        "common": lengths,
        "gaps": [gap[length] for gap, length in zip(gaps, lengths, strict=True) if length < len(gap)],
    }


def compared(served: Served, said: Reference, text: TokenSequences, prompts: torch.Tensor) -> dict[str, Any]:
    """Compare a file in llama.cpp with transformers."""
    same, losses, difference = [], [], 0.0
    for k, ids in enumerate(text.ids):
        logits = served.logits(ids.tolist())
        same.append(float((torch.from_numpy(logits.argmax(-1)) == said.likeliest[k]).double().mean()))
        losses.append(loss(logits, ids))
        if k == 0:
            difference = float((torch.from_numpy(logits) - said.first).abs().max())
    written = [served.write(prompt, len(said.written[0])) for prompt in prompts.tolist()]
    return {
        "perplexity": float(np.exp(fmean(losses))),
        "same_likeliest": fmean(same),
        "largest_logit_difference": difference,
        "greedy": common(said.written, written, said.gaps),
    }


def timed(served: Mapping[str, Served], ids: Sequence[int], sizes: Sizes) -> dict[str, dict[str, Any]]:
    """Measure reading and writing, all checkpoints in turn; return tokens a second and speed-ups of each."""

    def read(file: Served) -> None:
        file.forget()
        file.read(ids[: sizes.read])

    def written(file: Served) -> None:
        file.write(ids[:1], sizes.written)

    stopwatch = Stopwatch(sizes.rounds, lambda: None)
    found: dict[str, dict[str, Any]] = {label: {} for label in served}
    for what, tokens, action in (("read", sizes.read, read), ("write", sizes.written, written)):
        seconds = stopwatch({label: partial(action, file) for label, file in served.items()})
        for label, spent in seconds.items():
            quotients = [d / c for d, c in zip(seconds[DENSE], spent, strict=True)]
            found[label][what] = {
                "tokens_per_second": tokens / median(spent),
                "speedup": median(quotients),
                "quartiles": [float(q) for q in np.quantile(quotients, [0.25, 0.75])],
            }
    return found


def demo_checkpoints(directory: Path, *, uneven: bool = False) -> dict[str, Path]:
    """Write the demo model and its compact models, those that are not there yet; return the directory of each by its label."""
    found = {DENSE: directory / DENSE}
    if not found[DENSE].is_dir():
        loaded = checkpoint.load(demo_model(), dtype="float32")
        checkpoint.save(found[DENSE], loaded.model, loaded.tokenizer)
    for amount, multiple in WIDTHS[1:2] if uneven else WIDTHS:
        target = directory / f"removed-{amount}-multiple-{multiple}"
        _write_pruned(found[DENSE], target, amount=amount, pruner=f"local:multiple_of={multiple}")
        found[f"width {read_stock(target).width}"] = target
    for label, settings in UNEVEN.items() if uneven else ():
        found[label] = directory / label.replace(",", "").replace(" ", "-")
        _write_pruned(found[DENSE], found[label], **settings)
    return found


def _write_pruned(dense: Path, target: Path, **settings: Any) -> None:
    """Prune the dense checkpoint and save it, unless it is there."""
    if not target.is_dir():
        loaded = checkpoint.load(dense, dtype="float32")
        calibration = CalibrationText("built-in", SAMPLES, SAMPLE_LENGTH)
        prune_model(loaded.model, loaded.tokenizer, calibration=calibration, **settings).save(target)


def named_checkpoints(dense: Path, compact: Sequence[Path]) -> dict[str, Path]:
    """Return the directories by label: the width, and the name where several have one width."""
    found = {DENSE: dense}
    for path in compact:
        label = f"width {read_stock(path).width}"
        found[f"{label}, {path.name}" if label in found else label] = path
    return found


class Study:
    """Checkpoints, their GGUF files, and what was measured of each.

    Parameters
    ----------
    llama_cpp : LlamaCpp
    checkpoints : mapping from str to Path
        By label, the dense one first.
    work : Path
        Where the files are written; those that are there already are used.
    sizes : Sizes
    forms : sequence of str
        Formats of the files.

    Attributes
    ----------
    rows : list of dict
        One for each checkpoint.
    """

    def __init__(
        self, llama_cpp: LlamaCpp, checkpoints: Mapping[str, Path], work: Path, sizes: Sizes, forms: Sequence[str]
    ) -> None:
        self.llama_cpp, self.work, self.sizes, self.forms = llama_cpp, work, sizes, forms
        self.rows: list[dict[str, Any]] = []
        for label, path in checkpoints.items():
            self.rows.append(self._compare(label, path))
        for form in forms:
            if form != "f32":
                self._time(form, next(iter(checkpoints.values())))

    def _file(self, label: str, form: str) -> Path:
        return self.work / f"{label.replace(',', '').replace(' ', '-')}-{form}.gguf"

    def _compare(self, label: str, path: Path) -> dict[str, Any]:
        """Write the files of a checkpoint and compare each with transformers."""
        sizes, loaded = self.sizes, load(path, dtype="float32")
        evaluation = builtin_texts()[1]
        text = tokenise(evaluation, loaded.tokenizer, sizes.sequences, sizes.length)
        prompts = tokenise(evaluation, loaded.tokenizer, sizes.prompts, sizes.length).ids[:, : sizes.prompt_length]
        said = reference(loaded.model, text, prompts, sizes.new_tokens)
        words = evaluation[:TOKENISED]
        expected = loaded.tokenizer(words, add_special_tokens=False)["input_ids"]
        del loaded
        files = {}
        for form in self.forms:
            dense = self._file(DENSE, form if form in CONVERTED else "f16")
            file = self.llama_cpp.write(path, self._file(label, form), form, dense)
            with Served(self.llama_cpp, file, sizes.context, sizes.threads, exact=form == "f32") as served:
                files[form] = {
                    "bytes": file.stat().st_size,
                    "types": tensor_types(file),
                    "replaced": replaced_types(file.with_suffix(".log").read_text(encoding="utf-8")),
                    "same_tokens_of_text": served.tokenise(words) == expected,
                    **compared(served, said, text, prompts),
                }
            print(label, form, {name: value for name, value in files[form].items() if name != "types"}, flush=True)
        return {
            "label": label,
            "stock": asdict(read_stock(path)),
            "checkpoint_bytes": sum(file.stat().st_size for file in path.glob("model*.safetensors")),
            "perplexity": said.perplexity,
            "files": files,
        }

    def _time(self, form: str, dense: Path) -> None:
        """Measure the speed of the files of a format, in turn."""
        tokenizer = transformers.AutoTokenizer.from_pretrained(dense)
        ids = tokenise(builtin_texts()[1], tokenizer, 1, self.sizes.read).ids[0].tolist()
        with ExitStack() as stack:
            served = {
                row["label"]: stack.enter_context(
                    Served(self.llama_cpp, self._file(row["label"], form), self.sizes.context, self.sizes.threads)
                )
                for row in self.rows
            }
            speeds = timed(served, ids, self.sizes)
        for row in self.rows:
            row["files"][form]["speed"] = speeds[row["label"]]
            print(row["label"], form, speeds[row["label"]], flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--llama-cpp",
        type=Path,
        default=Path(os.environ["LLAMA_CPP"]) if "LLAMA_CPP" in os.environ else None,
        help="source of llama.cpp, with its converter (default the environment variable LLAMA_CPP)",
    )
    parser.add_argument("--dense", type=Path, help="directory of the dense checkpoint; default the demo model")
    parser.add_argument(
        "--compact", type=Path, action="append", default=[], help="directory of a compact checkpoint; may be repeated"
    )
    parser.add_argument("--uneven", action="store_true", help="prune by budgets under which layers differ")
    parser.add_argument("--formats", default=",".join(FORMATS), help="with commas (%(default)s)")
    parser.add_argument("--rounds", type=int, default=Sizes.rounds)
    parser.add_argument("--threads", type=int, default=Sizes.threads, help="of llama.cpp (%(default)s)")
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("--work", type=Path, help="directory that keeps all files, so that a further run goes on there")
    parser.add_argument("--output", type=Path, help="default serving.json, or serving_uneven.json, among the results")
    options = parser.parse_args(arguments)
    if bool(options.dense) != bool(options.compact):
        parser.error("--dense and --compact belong together: give both, or neither for the demo model")
    if options.uneven and options.dense:
        parser.error("--uneven prunes the demo model, and --dense names checkpoints; give one of them")
    forms = options.formats.split(",")
    if unknown := set(forms) - FORMATS.keys():
        parser.error(f"unknown formats: {', '.join(sorted(unknown))}; expected {', '.join(FORMATS)}")
    llama_cpp = LlamaCpp(options.llama_cpp)
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    sizes = Sizes(rounds=options.rounds, threads=options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        if options.dense:
            checkpoints = named_checkpoints(options.dense, options.compact)
        else:
            checkpoints = demo_checkpoints(work, uneven=options.uneven)
        rows = Study(llama_cpp, checkpoints, work, sizes, forms).rows
    protocol = {
        "model": options.dense.name if options.dense else DEMO_NAME,
        "checkpoints": {label: path.name for label, path in checkpoints.items()},
        "calibration": None if options.dense else f"built-in text, {SAMPLES} sequences of {SAMPLE_LENGTH} tokens",
        "text": "built-in, the part for evaluation",
        "sizes": asdict(sizes),
        "llama.cpp": llama_cpp.description(),
        "note": options.note,
    }
    results = {"provenance": provenance(seed=0), "protocol": protocol, "rows": rows}
    name = "serving_uneven.json" if options.uneven else "serving.json"
    write_results(options.output or RESULTS / name, results, table)
    print(table(results))


if __name__ == "__main__":
    main()
