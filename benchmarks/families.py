"""Which model types of transformers can be pruned, and loaded again: all causal language models that the installed version has.

Run it as ``python -m benchmarks.families``. Of every model type a tiny model is made, with seeded weights. 30 % of the neurons of
each FFN are removed, and the compact model is saved and loaded again. Its logits must be those of a copy of the dense model in
which the removed neurons are set to zero by this file, not by llmrank. Of mixtures, 25 % of the experts are
removed too, from a model of their own; for the expected logits, those of the removed experts in the routers are minus infinity.
From a third model half of the heads are removed, where all have two or more that do not share a key. From a fourth one, of six
blocks, two are left out; for the expected logits, they return the hidden states that they get.
The outcome of a type, and those of its experts, its heads and its blocks, are among these:

- stock: the checkpoint is exact in stock transformers;
- llmrank.load: no field of the configuration states the widths, and llmrank alone loads the checkpoint, exactly;
- refused: llmrank said why it does not prune the model, and wrote nothing;
- wrong: logits differ, or the pruned model cannot be saved, or nobody can load the checkpoint;
- traceback: an error that is not one of llmrank's;
- timeout;
- cannot build: the tiny model is not made or does not run, so nothing is known about llmrank.

Each model runs in a process that is started anew after an error or a time-out. A run continues its own result file. A part
of the results goes into the package, for ``llmrank families``.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import json
import multiprocessing
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from textwrap import shorten
from time import perf_counter
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import llmrank
from benchmarks.hand_masks import blocks_left_out, experts_silenced, neurons_set_to_zero, readers_of
from benchmarks.result_files import opened, write, write_results
from benchmarks.tiny_configs import FIRST_SPECIAL, VARIANTS, tiny_model
from graphs.errors import GraphError
from llmrank.errors import LLMRankError
from llmrank.models import FFNs, find_ffns
from llmrank.models.finding.heads import find_heads
from llmrank.models.forward import reached_by_tokens
from llmrank.models.measured_families import OTHER_TARGETS

RESULTS = Path(__file__).parent / "results"
# What `llmrank families` prints.
PACKAGED = Path(llmrank.__file__).parent / "models" / "families.json"
OUTCOMES = ("stock", "llmrank.load", "refused", "wrong", "traceback", "timeout", "cannot build")
# With variants of some types.
MODEL_TYPES = (*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *VARIANTS)
# Types whose models take other inputs than token ids, so that a plain forward pass proves nothing.
NOT_ON_IDS = ("gemma4_assistant", "gemma4_unified_assistant")
AMOUNT, EXPERTS, HEADS, SEED = 0.3, 0.25, 0.5, 0
# Of a model with so many blocks, so many are left out.
DEPTH, BLOCKS = 6, 2
# Of the largest logit. Compact matrices are summed in another order.
TOLERANCE = 1e-4
PROTOCOL = {
    "transformers": transformers.__version__,
    "amount": AMOUNT,
    "experts": EXPERTS,
    "heads": HEADS,
    "blocks": f"{BLOCKS} of {DEPTH}",
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


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference of two tensors, as a share of the largest expected number; infinite for other shapes."""
    if found.shape != expected.shape or not bool(torch.isfinite(found).all()):
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max())


def measured(model_type: str) -> dict[str, Any]:
    """Build, prune, save and load one type, and return its outcome, and that of each other target that it may have."""
    try:
        model, before = built(model_type)
    except Exception as error:
        return {"outcome": "cannot build", "reason": message(error)}
    row = {"class": type(model).__name__, **pruned_by(copy.deepcopy(model), before, "neurons", AMOUNT)}
    row["heads"] = pruned_by(copy.deepcopy(model), before, "heads", HEADS)
    try:
        row["blocks"] = pruned_by(*built(model_type, DEPTH), "blocks", BLOCKS)
    except Exception as error:
        row["blocks"] = {"outcome": "cannot build", "reason": message(error)}
    if any(is_mixture(module) for module in model.modules()):
        row["experts"] = pruned_by(model, before, "experts", EXPERTS)
    return row


def built(model_type: str, depth: int | None = None) -> tuple[Any, torch.Tensor | None]:
    """Return a tiny model, and its logits if they prove something."""
    model = tiny_model(model_type, SEED, depth)
    before = None if model_type in NOT_ON_IDS else logits(model)
    if before is not None and not bool(torch.isfinite(before).all()):
        raise ValueError("the logits are not finite")
    return model, before


def is_mixture(module: Any) -> bool:
    """Whether a module is named after experts, or after a mixture of which it states the number of experts."""
    name = type(module).__name__.lower()
    return "expert" in name or ("moe" in name and getattr(module, "num_experts", 0) > 1)


def pruned_by(model: Any, before: Any, targets: str, amount: float | int) -> dict[str, Any]:
    """Prune, save and load a model that is not pruned yet and whose logits are given, and return the outcome."""
    dense = copy.deepcopy(model)
    row: dict[str, Any] = {}
    try:
        ffns = find_ffns(model)
        if targets == "heads":
            ffns = FFNs(find_heads(model, reached_by_tokens(model, ffns)).values())
        if targets == "neurons":
            row |= {"ffns": len(ffns), "kinds": dict(Counter(ffn.kind for ffn in ffns))}
        readers = readers_of(model, ffns)
        pruned = llmrank.prune_model(
            model, None, amount, targets=targets, repair="none", calibration=token_ids(4, 32, seed=0), samples=4
        )
        with ExitStack() as by_hand:
            if targets == "blocks":
                by_hand.enter_context(blocks_left_out(dense, pruned.report.neurons["left_out"]))
            else:
                by_hand.enter_context(neurons_set_to_zero(dense, pruned.masks, readers))
                by_hand.enter_context(experts_silenced(dense, pruned.masks))
            expected = logits(dense)
        row["effect"] = difference(expected, before)
        row["pruned"] = sum(not bool(mask.all()) for mask in pruned.masks.values())
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
    others = {kind: Counter(row[kind]["outcome"] for row in rows.values() if kind in row) for kind in OTHER_TARGETS}
    versions = results["provenance"]
    variants = len(rows.keys() & VARIANTS.keys())
    models = (
        f"{len(rows) - variants} model types of the causal language models in transformers {versions['transformers']}"
    )
    lines = [
        (
            f"{models}, and {variants} variants; {AMOUNT:.0%} of the neurons removed, and {EXPERTS:.0%} of the experts of "
            f"{others['experts'].total()} mixtures; and {HEADS:.0%} of the heads; and {BLOCKS} of {DEPTH} blocks."
        ),
        "",
        f"| outcome | models | {' | '.join(OTHER_TARGETS)} |",
        f"| --- |{' ---: |' * (1 + len(OTHER_TARGETS))}",
        *(
            f"| {outcome} | {' | '.join(str(count[outcome]) for count in (counts, *others.values()))} |"
            for outcome in OUTCOMES
            if any(count[outcome] for count in (counts, *others.values()))
        ),
        "",
        f"| model type | outcome | {' | '.join(OTHER_TARGETS)} | FFNs | seconds | reason |",
        f"| --- | --- |{' --- |' * len(OTHER_TARGETS)} --- | ---: | --- |",
    ]
    for name in sorted(rows):
        row = rows[name]
        kinds = ", ".join(f"{count} {kind}" for kind, count in row.get("kinds", {}).items())
        reason = shorten(reason_of(row), 240, placeholder=" ...").replace("|", "\\|")
        outcomes = " | ".join([row["outcome"], *(row.get(kind, {}).get("outcome", "") for kind in OTHER_TARGETS)])
        lines.append(f"| {name} | {outcomes} | {kinds} | {row['seconds']:.1f} | {reason} |")
    return "\n".join(lines) + "\n"


def reason_of(row: dict[str, Any]) -> str:
    """Return why neurons, experts, heads or blocks of a type were not removed so that stock transformers loads it."""
    found = {kind: row.get(kind, {}).get("reason", "") for kind in OTHER_TARGETS}
    given = row.get("reason", "")
    return "; ".join(
        [*([given] if given else []), *(f"{k}: {why}" for k, why in found.items() if why not in ("", given))]
    )


def for_the_package(results: dict[str, Any]) -> str:
    """Return the part of the results that ``llmrank families`` prints, as JSON with a line for each type."""
    rows = []
    for name, row in sorted(results["rows"].items()):
        others = {kind: row.get(kind, {}).get("outcome", "") for kind in OTHER_TARGETS}
        shown = {"outcome": row["outcome"], **others, "reason": reason_of(row)}
        rows.append(f"  {json.dumps(name)}: {json.dumps(shown)}")
    shares = {"neurons": AMOUNT, "experts": EXPERTS, "heads": HEADS, "blocks": f"{BLOCKS} of {DEPTH}"}
    head = {"transformers": results["protocol"]["transformers"], **shares}
    return json.dumps(head)[:-1] + ', "rows": {\n' + ",\n".join(rows) + "\n}}\n"


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
        write_results(options.output, results, table)
        if options.output == RESULTS / "families.json":
            write(PACKAGED, for_the_package(results))


if __name__ == "__main__":
    main()
