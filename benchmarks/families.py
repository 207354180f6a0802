"""Which model types of transformers can be pruned, and loaded again: all causal language models that the installed version has.

Run it as ``python -m benchmarks.families``. Of every model type a tiny model is made, with seeded weights. 30 % of the neurons of
each FFN are removed, and the compact model is saved and loaded again. Its logits must be those of a copy of the dense model in
which the removed neurons are set to zero by this file, not by llmrank. The outcome of a type is one of these:

- stock: the checkpoint is exact in stock transformers;
- llmrank.load: no field of the configuration states the widths, and llmrank alone loads the checkpoint, exactly;
- refused: llmrank said why it does not prune the model, and wrote nothing;
- wrong: logits differ, or the pruned model cannot be saved, or nobody can load the checkpoint;
- traceback: an error that is not one of llmrank's;
- timeout;
- cannot build: the tiny model is not made or does not run, so nothing is known about llmrank.

Each model runs in a process that is started anew after an error or a time-out. A run continues its own result file.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import multiprocessing
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from textwrap import shorten
from time import perf_counter
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import llmrank
from benchmarks.provenance import opened, write
from benchmarks.tiny_configs import FIRST_SPECIAL, VARIANTS, tiny_model
from graphs.errors import GraphError
from llmrank.errors import LLMRankError
from llmrank.models import FFNs, find_ffns

RESULTS = Path(__file__).parent / "results"
OUTCOMES = ("stock", "llmrank.load", "refused", "wrong", "traceback", "timeout", "cannot build")
# With variants of some types.
MODEL_TYPES = (*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *VARIANTS)
# Types whose models take other inputs than token ids, so that a plain forward pass proves nothing.
NOT_ON_IDS = ("gemma4_assistant", "gemma4_unified_assistant")
AMOUNT, SEED = 0.3, 0
# Of the largest logit. Compact matrices are summed in another order.
TOLERANCE = 1e-4
PROTOCOL = {
    "transformers": transformers.__version__,
    "amount": AMOUNT,
    "pruner": "local",
    "pipeline": "isolated",
    "repair": "none",
    "tolerance": TOLERANCE,
}


def token_ids(n: int, length: int, seed: int) -> torch.Tensor:
    """Return random token ids that no model takes for special ones."""
    return torch.randint(4, FIRST_SPECIAL, (n, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    """Return the logits of a few tokens."""
    torch.manual_seed(SEED)
    more = {}
    if model.config.model_type == "mllama_text_model":
        # Without an image, the model skips the layers that attend to one.
        more["cross_attention_states"] = torch.randn(2, 3, model.config.hidden_size)
    found: torch.Tensor = model.eval()(input_ids=token_ids(2, 24, seed=1), use_cache=False, **more).logits
    return found


@dataclass(frozen=True)
class Reader:
    """What reads the neurons of a layer: a module, or the entry of one expert in a tensor of a module of experts."""

    module: str
    tensor: str | None = None
    expert: int = 0


def readers_of(model: nn.Module, ffns: FFNs) -> dict[str, Reader]:
    """Return what reads the neurons of every prunable layer."""
    paths = {id(module): path for path, module in model.named_modules()}
    found = {}
    for name, layer in ffns.layers.items():
        output_map = layer.output_maps[0]
        path = paths[id(output_map.owner)]
        part = getattr(output_map.module, "weight_part", None)
        found[name] = Reader(path) if part is None else Reader(path, part.name, part.expert)
    return found


@contextmanager
def neurons_set_to_zero(model: nn.Module, masks: llmrank.Masks, readers: dict[str, Reader]) -> Iterator[None]:
    """Set the removed neurons to zero where the output maps read them.

    Parameters
    ----------
    model : nn.Module
        The dense model.
    masks : Masks
    readers : dict from str to Reader
        What reads the neurons of every mask.
    """

    def zero(keep: torch.Tensor) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            return (torch.where(keep, inputs[0], 0.0), *inputs[1:])

        return hook

    with ExitStack() as undo:
        for name, keep in masks.items():
            reader = readers[name]
            module = model.get_submodule(reader.module)
            if reader.tensor is None:
                undo.callback(module.register_forward_pre_hook(zero(keep)).remove)
                continue
            # The neurons of an expert are read inside the module of all experts, so its weights for them are set to zero.
            weight = getattr(module, reader.tensor).data[reader.expert]
            axes = [axis for axis, size in enumerate(weight.shape) if size == len(keep)]
            if len(axes) != 1 or not bool(keep.any()):
                raise NotImplementedError(
                    f"{name}: whole experts, and experts as wide as the stream, are not masked here"
                )
            undo.callback(weight.copy_, weight.clone())
            weight.index_fill_(axes[0], (~keep).nonzero().flatten(), 0.0)
        yield


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference of two tensors, as a share of the largest expected number; infinite for other shapes."""
    if found.shape != expected.shape or not bool(torch.isfinite(found).all()):
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max())


def measured(model_type: str) -> dict[str, Any]:
    """Build, prune, save and load one type, and return its outcome."""
    try:
        model = tiny_model(model_type, SEED)
        before = None if model_type in NOT_ON_IDS else logits(model)
        if before is not None and not bool(torch.isfinite(before).all()):
            raise ValueError("the logits are not finite")
    except Exception as error:
        return {"outcome": "cannot build", "reason": message(error)}
    dense = copy.deepcopy(model)
    row: dict[str, Any] = {"class": type(model).__name__}
    try:
        ffns = find_ffns(model)
        row |= {"ffns": len(ffns), "kinds": dict(Counter(ffn.kind for ffn in ffns))}
        readers = readers_of(model, ffns)
        pruned = llmrank.prune_model(
            model, None, AMOUNT, repair="none", calibration=token_ids(4, 32, seed=0), samples=4
        )
        with neurons_set_to_zero(dense, pruned.masks, readers):
            expected = logits(dense)
        row["effect"] = difference(expected, before)
        row["pruned"] = len(pruned.masks)
        with tempfile.TemporaryDirectory() as directory:
            try:
                path = pruned.save(Path(directory) / "pruned")
            except LLMRankError as error:
                return row | {"outcome": "wrong", "reason": f"the pruned model is not saved: {error}"}
            return row | checked(path, model, expected)
    except (LLMRankError, GraphError) as error:
        return row | {"outcome": "refused", "reason": str(error)}
    except Exception as error:
        return row | {"outcome": "traceback", "reason": f"{message(error)} in {place_of(error)}"}


def checked(path: Path, model: Any, expected: torch.Tensor) -> dict[str, Any]:
    """Load a checkpoint, and compare its logits and those of the pruned model with the expected ones."""
    errors = {"the pruned model": difference(logits(model), expected)}
    again: Any = None
    info: dict[str, Any] = {}
    outcome = "stock"
    try:
        again, info = type(model).from_pretrained(path, output_loading_info=True, dtype=torch.float32)
        info = {kind: sorted(map(str, keys)) for kind, keys in info.items() if kind.endswith("_keys") and keys}
    except Exception as error:
        info = {"error": message(error)}
    if info:
        try:
            again = llmrank.load(path, dtype="float32").model
            outcome = "llmrank.load"
        except Exception as error:
            return {"outcome": "wrong", "reason": f"stock: {info}; llmrank.load: {message(error)}"}
    errors["the loaded model"] = difference(logits(again), expected)
    far = [f"{name} is off by {error:.1e} of the largest logit" for name, error in errors.items() if error > TOLERANCE]
    found = {"outcome": "wrong" if far else outcome, "error": max(errors.values())}
    return found | ({"reason": "; ".join(far)} if far else {})


def message(error: BaseException) -> str:
    """Return the type of an error and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:400]


def place_of(error: BaseException) -> str:
    """Return the file and the function in which an error was raised."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).name}, {frame.name}"


def work(connection: Connection) -> None:
    """Measure the types that come through a connection, one after the other."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    connection.send("ready")
    while True:
        model_type = connection.recv()
        connection.send(measured(model_type))


class Worker:
    """A process that measures models; it is started when it is needed, and killed when it takes too long."""

    def __init__(self) -> None:
        self._process: Any = None
        self._connection: Any = None

    def run(self, model_type: str, timeout: float) -> dict[str, Any]:
        """Measure one type."""
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._connection, theirs = context.Pipe()
            self._process = context.Process(target=work, args=(theirs,), daemon=True)
            self._process.start()
            theirs.close()
            self._connection.recv()  # the imports take seconds, which are not the model's
        start = perf_counter()
        self._connection.send(model_type)
        try:
            if self._connection.poll(timeout):
                return self._connection.recv() | {"seconds": round(perf_counter() - start, 2)}
            found = {"outcome": "timeout", "reason": f"more than {timeout:g} s"}
        except EOFError:
            found = {"outcome": "traceback", "reason": "the process died"}
        self.close()
        return found | {"seconds": round(perf_counter() - start, 2)}

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
            self._process = None


def run_all(model_types: Sequence[str], timeout: float, jobs: int = 1) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every type with its outcome, in the order of the types."""
    idle: SimpleQueue[Worker] = SimpleQueue()
    workers = [Worker() for _ in range(jobs)]
    for worker in workers:
        idle.put(worker)

    def one(model_type: str) -> dict[str, Any]:
        worker = idle.get()
        try:
            return worker.run(model_type, timeout)
        finally:
            idle.put(worker)

    try:
        with ThreadPoolExecutor(jobs) as pool:
            yield from zip(model_types, pool.map(one, model_types), strict=True)
    finally:
        for worker in workers:
            worker.close()


def table(results: dict[str, Any]) -> str:
    """Return the results in markdown: how many types have each outcome, and every type; the JSON has the reasons in full."""
    rows = results["rows"]
    counts = Counter(row["outcome"] for row in rows.values())
    versions = results["provenance"]
    variants = len(rows.keys() & VARIANTS.keys())
    models = (
        f"{len(rows) - variants} model types of the causal language models in transformers {versions['transformers']}"
    )
    lines = [
        f"{models}, and {variants} variants; {AMOUNT:.0%} of the neurons removed.",
        "",
        "| outcome | models |",
        "| --- | ---: |",
        *(f"| {outcome} | {counts[outcome]} |" for outcome in OUTCOMES if counts[outcome]),
        "",
        "| model type | outcome | FFNs | seconds | reason |",
        "| --- | --- | --- | ---: | --- |",
    ]
    for name in sorted(rows):
        row = rows[name]
        kinds = ", ".join(f"{count} {kind}" for kind, count in row.get("kinds", {}).items())
        reason = shorten(row.get("reason", ""), 240, placeholder=" ...").replace("|", "\\|")
        lines.append(f"| {name} | {row['outcome']} | {kinds} | {row['seconds']:.1f} | {reason} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", help="pattern of model types, such as 'gemma*'; measured anew")
    parser.add_argument("--quick", action="store_true", help="a third of the types, printed and not written")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for one model (%(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="models at the same time (%(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS / "families.json")
    options = parser.parse_args(arguments)
    asked = list(MODEL_TYPES[::3] if options.quick else MODEL_TYPES)
    results: dict[str, Any] = {} if options.quick else opened(options.output, PROTOCOL)
    rows: dict[str, dict[str, Any]] = results.setdefault("rows", {})
    if options.only:
        asked = [name for name in asked if any(fnmatch.fnmatch(name, pattern) for pattern in options.only)]
    else:
        asked = [name for name in asked if name not in rows]
    print(f"resuming with {len(rows)} rows")
    for place, (name, row) in enumerate(run_all(asked, options.timeout, options.jobs), start=1):
        rows[name] = row
        print(
            f"{place} of {len(asked)}: {name}: {row['outcome']}, {row['seconds']} s. {row.get('reason', '')}",
            flush=True,
        )
        if not options.quick:
            write(options.output, results)
    print(dict(Counter(row["outcome"] for row in rows.values())))
    if not options.quick:
        write(options.output, results)
        write(options.output.with_suffix(".md"), table(results))


if __name__ == "__main__":
    main()
