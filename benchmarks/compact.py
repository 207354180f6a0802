"""Speed-up of compact models against what their FLOPs promise: the FFNs alone, forward passes, generation.

Run it as ``python -m benchmarks.compact``. The dense model and models that :class:`llmrank.IsolatedFFNPipeline` has pruned (at
random: only widths matter here) are measured in turn in one process. They share all weights except those of the FFNs. In each
round, the speed-up is the median time of the dense model divided by that of the compact model; the result is the median over
the rounds. The FFNs alone run one after the other, each on its inputs in the dense model. The promised speed-up is the quotient
of multiply-adds: those of the FFNs, or for the whole model those of all linear maps and of attention. The number of threads is
that of torch (``OMP_NUM_THREADS``).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from benchmarks import figures
from benchmarks.measure import alternated
from benchmarks.provenance import provenance
from benchmarks.result_files import write_results
from benchmarks.variants import Variant, model_multiply_adds, multiply_adds, variants
from llmrank.cli.demo_models import demo_model
from llmrank.models import FFNs
from llmrank.models.forward import input_device
from llmrank.surgery import checkpoint
from llmrank.text import builtin_texts, tokenise

RESULTS = Path(__file__).parent / "results"
# A measured speed-up keeps the promise if its quotient by the promised one differs from 1 by at most this.
TOLERANCE = 0.1
MULTIPLE = 64

# Loads a checkpoint in a process of its own, reads all of it, and prints the peak of the process's memory in kB.
LOADER = """
import pathlib, sys, llmrank, torch
model = llmrank.load(sys.argv[1]).model
with torch.inference_mode():
    model(torch.zeros((1, 2), dtype=torch.long))
# Not getrusage: its peak is that of the process that started this one, where that was larger.
status = pathlib.Path("/proc/self/status").read_text()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""


def ffn_inputs(model: Any, ffns: FFNs, ids: torch.Tensor) -> list[torch.Tensor]:
    """Return the inputs of every FFN for the sequences, (batch, length, hidden) each."""
    read: list[torch.Tensor] = []
    handles = [
        ffn.module.register_forward_pre_hook(lambda _module, inputs: read.append(inputs[0].contiguous()))
        for ffn in ffns
    ]
    try:
        model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return read


def batch_of(ids: torch.Tensor, tokens: int) -> torch.Tensor:
    """Return `tokens` tokens, (batch, length): the beginning of the sequence, or several copies of the sequence."""
    length = ids.shape[1]
    if tokens <= length:
        return ids[:, :tokens]
    if tokens % length:
        raise ValueError(f"{tokens} tokens are no whole number of sequences of {length}")
    return ids.expand(tokens // length, -1)


class Stopwatch:
    """Measures variants in turn.

    Parameters
    ----------
    rounds : int
    wait : callable
        Returns when the device has finished its work.
    """

    def __init__(self, rounds: int, wait: Callable[[], None]) -> None:
        self.rounds = rounds
        self.wait = wait

    def __call__(self, actions: Mapping[str, Callable[[], Any]]) -> dict[str, list[float]]:
        """Return the seconds of every action, the median of each round."""

        def waited(action: Callable[[], Any]) -> Callable[[], None]:
            def run() -> None:
                action()
                self.wait()

            return run

        timed = {name: waited(action) for name, action in actions.items()}
        for action in timed.values():  # the first call allocates memory and chooses kernels
            action()
        rounds = [alternated(timed, 1, float("inf"), keep=False) for _ in range(self.rounds)]
        return {name: [median(seconds for seconds, _ in spent[name]) for spent in rounds] for name in actions}


def rows(trial: Trial, found: Sequence[Variant], seconds: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """Return one row for each compact model: its speed-up, and the one that its multiply-adds promise."""
    dense = found[0]
    result = []
    for variant in found[1:]:
        pair = {"dense": dense, "compact": variant}
        quotients = [d / c for d, c in zip(seconds[dense.label], seconds[variant.label], strict=True)]
        low, high = np.quantile(quotients, [0.25, 0.75])
        speedup, promised = median(quotients), trial.work(dense) / trial.work(variant)
        spent = {name: median(seconds[v.label]) for name, v in pair.items()}
        result.append(
            {
                "what": trial.what,
                "tokens": trial.tokens,
                "amount": variant.amount,
                "multiple_of": variant.multiple_of,
                "width": variant.width,
                "removed": 1.0 - variant.width / dense.width,
                "promised": promised,
                "speedup": speedup,
                "quartiles": [float(low), float(high)],
                "kept_promise": bool(abs(speedup / promised - 1.0) <= TOLERANCE),
                "seconds": spent,
                "gflops_per_second": {name: 2e-9 * trial.work(v) / spent[name] for name, v in pair.items()},
                "gigabytes_per_second": {name: 1e-9 * trial.bytes_read(v) / spent[name] for name, v in pair.items()},
            }
        )
    return result


@dataclass(frozen=True, eq=False)
class Trial:
    """One measurement, made on every variant.

    Attributes
    ----------
    what : {"ffn", "forward", "generation"}
    tokens : int
    run : callable
        Runs it on a variant.
    work : callable
        Returns its multiply-adds.
    bytes_read : callable
        Returns the bytes of weights that it reads. A pass reads them once for all its tokens.
    """

    what: str
    tokens: int
    run: Callable[[Variant], Any]
    work: Callable[[Variant], int]
    bytes_read: Callable[[Variant], int]


def trials(dense: Variant, ids: torch.Tensor, token_counts: Sequence[int], new_tokens: int) -> Iterator[Trial]:
    """Yield the trials: the FFNs alone and forward passes for each number of tokens, and generation."""
    for tokens in token_counts:
        yield ffn_trial(ffn_inputs(dense.model, dense.ffns, batch_of(ids, tokens)), tokens)
    for tokens in token_counts:
        yield forward_trial(batch_of(ids, tokens))
    yield generation_trial(batch_of(ids, new_tokens))


def item_size(variant: Variant) -> int:
    """Return the bytes of one number of the weights."""
    return int(next(variant.model.parameters()).element_size())


def ffn_trial(read: Sequence[torch.Tensor], tokens: int) -> Trial:
    """Return the trial of all FFNs, each on its own inputs."""

    def run(variant: Variant) -> None:
        for ffn, states in zip(variant.ffns, read, strict=True):
            ffn.module(states)

    return Trial(
        "ffn",
        tokens,
        run,
        lambda variant: tokens * multiply_adds(variant.ffns),
        lambda variant: item_size(variant) * multiply_adds(variant.ffns),
    )


def forward_trial(batch: torch.Tensor) -> Trial:
    """Return the trial of a forward pass with the logits of every token."""
    contexts = [*range(1, batch.shape[1] + 1)] * len(batch)
    return Trial(
        "forward",
        batch.numel(),
        lambda variant: variant.model(input_ids=batch, use_cache=False),
        lambda variant: model_multiply_adds(variant.model, contexts, batch.numel()),
        lambda variant: item_size(variant) * model_multiply_adds(variant.model, [0], 1),
    )


def generation_trial(prompt: torch.Tensor) -> Trial:
    """Return the trial of generation: as many new tokens as the prompt has, in as many passes, the first over the prompt."""
    count = prompt.shape[1]
    # Only the last token of the prompt gets logits.
    contexts = range(1, 2 * count)
    return Trial(
        "generation",
        count,
        lambda variant: generate(variant.model, prompt),
        lambda variant: model_multiply_adds(variant.model, contexts, count),
        lambda variant: item_size(variant) * model_multiply_adds(variant.model, [0] * count, count),
    )


def study(
    model: Any,
    ids: torch.Tensor,
    amounts: Sequence[float],
    token_counts: Sequence[int],
    new_tokens: int,
    rounds: int,
    multiple: int = MULTIPLE,
) -> dict[str, Any]:
    """Measure one device and dtype: those of the model.

    Parameters
    ----------
    model : transformers causal language model with FFNs in modules of their own
    ids : (1, length) tensor
    amounts : sequence of float
    token_counts : sequence of int
    new_tokens : int
        Number of tokens to generate, after a prompt of the same length.
    rounds : int
    multiple : int
    """
    device, dtype = input_device(model), next(model.parameters()).dtype
    found = variants(model, ids, amounts, (multiple, 1))
    check_alone(found[0].ffns)
    stopwatch = Stopwatch(rounds, waiting_for(device))
    with torch.inference_mode():
        measured = [
            row
            for trial in trials(found[0], ids.to(device), token_counts, new_tokens)
            for row in rows(trial, found, stopwatch({v.label: partial(trial.run, v) for v in found}))
        ]
    return {
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "peak": peak(device, dtype),
        "rows": measured,
    }


def check_alone(ffns: FFNs) -> None:
    """Raise if an FFN is not a module of its own (it may share one with attention): then it cannot be called by itself."""
    for ffn in ffns:
        own = {id(p.module) for stage in ffn.stages for p in stage}
        if {id(m) for m in ffn.module.modules() if isinstance(m, (nn.Linear, Conv1D))} != own:
            raise ValueError(
                f"{ffn.name} holds more than its FFN, which cannot be timed by itself; expected a model whose FFNs are "
                "modules of their own, such as Llama, Qwen, Gemma, Phi or GPT-2"
            )


def waiting_for(device: torch.device) -> Callable[[], None]:
    """Return a function that returns when the device has finished its work; on a CPU that is at once."""
    return partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None


def generate(model: Any, prompt: torch.Tensor) -> torch.Tensor:
    """Generate as many tokens as the prompt has, greedily and with a cache."""
    count = prompt.shape[1]
    return model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        min_new_tokens=count,
        max_new_tokens=count,
        pad_token_id=0,
    )


def peak(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Measure the best that the device can do: a large matrix product in GFLOP/s, reading a large array in GB/s."""
    size = 2048 if device.type == "cpu" else 8192
    square = torch.rand((size, size), device=device, dtype=dtype)
    large = torch.ones(2**27 if device.type == "cpu" else 2**28, device=device)
    stopwatch = Stopwatch(3, waiting_for(device))
    with torch.inference_mode():
        product, reading = (
            median(spent)
            for spent in stopwatch({"product": lambda: square @ square, "reading": lambda: large.sum()}).values()
        )
    return {"gflops_per_second": 2e-9 * size**3 / product, "gigabytes_per_second": 4e-9 * large.numel() / reading}


def limit(row: Mapping[str, Any], best: Mapping[str, float]) -> str:
    """Return what limits the compact model: arithmetic or memory if it reaches half of the device's best there, else neither."""
    shares = {
        name: row[key]["compact"] / best[key]
        for name, key in (("arithmetic", "gflops_per_second"), ("memory", "gigabytes_per_second"))
    }
    name = max(shares, key=lambda name: shares[name])
    return f"{name}, {shares[name]:.0%} of the best" if shares[name] >= 0.5 else "neither"


def memory(model: Any, ids: torch.Tensor, amounts: Sequence[float], multiple: int = MULTIPLE) -> list[dict[str, Any]]:
    """Measure the size of each checkpoint, and the peak memory of a process that loads it and reads all of it (Linux only)."""
    if not Path("/proc/self/status").is_file():
        return []
    result = []
    for variant in variants(model, ids, amounts, [multiple]):
        with tempfile.TemporaryDirectory() as directory:
            saved = checkpoint.save(Path(directory) / "saved", variant.model)
            outcome = subprocess.run(
                [sys.executable, "-c", LOADER, str(saved)], capture_output=True, text=True, check=True
            )
            size = sum(path.stat().st_size for path in saved.glob("*.safetensors"))
        resident = 1024 * int(outcome.stdout.split()[-1])
        result.append({"amount": variant.amount, "width": variant.width, "file_bytes": size, "peak_bytes": resident})
    return result


TITLES = {"ffn": "FFNs alone", "forward": "Forward pass of the whole model", "generation": "Generation"}
COLUMNS = (
    "tokens",
    "removed",
    "width",
    "promised",
    "speed-up",
    "quartiles",
    "of promise",
    "dense, compact ms",
    "dense, compact GFLOP/s",
    "compact limited by",
)


def table(results: Mapping[str, Any]) -> str:
    """Return the results in markdown."""
    machine, protocol = results["provenance"], results["protocol"]
    lines = [
        f"{protocol['model']}. {machine['cpu']}, {machine['cores']} cores, {machine['threads']} thread(s), GPU {machine['gpu']}.",
        f"Speed-up: median of {protocol['rounds']} rounds, and their quartiles. Promised: by multiply-adds. What limits is said",
        "where the compact model does half or more of what the device can do at its best.",
    ]
    for case in results["cases"]:
        best = case["peak"]
        peaks = f"{best['gflops_per_second']:,.0f} GFLOP/s, {best['gigabytes_per_second']:,.0f} GB/s"
        lines += ["", f"# {case['device']}, {case['dtype']}: at best {peaks}"]
        for what, title in TITLES.items():
            chosen = sorted(
                (row for row in case["rows"] if row["what"] == what), key=lambda row: (row["tokens"], row["removed"])
            )
            even = [row for row in chosen if row["multiple_of"] != 1]
            kept = sum(row["kept_promise"] for row in even)
            lines += [
                "",
                f"## {title}: {kept} of {len(even)} within {TOLERANCE:.0%} of the promise (multiples of {protocol['multiple']})",
                "",
                f"| {' | '.join(COLUMNS)} |",
                f"| {' | '.join(['---:'] * (len(COLUMNS) - 1))} | --- |",
                *(f"| {' | '.join(_cells(row, best))} |" for row in chosen),
            ]
    if results["memory"]:
        lines += ["", "# Memory", "", "| removed | width | checkpoint MB | peak of a process that loads it MB |"]
        lines += ["| ---: | ---: | ---: | ---: |"]
        lines += [
            f"| {row['amount']:.0%} | {row['width']} | {row['file_bytes'] / 1e6:.0f} | {row['peak_bytes'] / 1e6:.0f} |"
            for row in results["memory"]
        ]
    return "\n".join(lines) + "\n"


def _cells(row: Mapping[str, Any], best: Mapping[str, float]) -> list[str]:
    missed = "" if row["kept_promise"] else "**"
    seconds, rate = row["seconds"], row["gflops_per_second"]
    return [
        str(row["tokens"]),
        f"{row['removed']:.1%}",
        f"{row['width']}{' (no multiple)' if row['multiple_of'] == 1 else ''}",
        f"{row['promised']:.2f}",
        f"{row['speedup']:.2f}",
        f"{row['quartiles'][0]:.2f} to {row['quartiles'][1]:.2f}",
        f"{missed}{row['speedup'] / row['promised'] - 1:+.0%}{missed}",
        f"{1e3 * seconds['dense']:.1f}, {1e3 * seconds['compact']:.1f}",
        f"{rate['dense']:,.0f}, {rate['compact']:,.0f}",
        limit(row, best),
    ]


def tiny_model() -> Any:
    """Return a small random model, for smoke tests."""
    config = transformers.LlamaConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    return transformers.LlamaForCausalLM(config).eval()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="directory, hub name or .gguf file; default the demo model")
    parser.add_argument("--amounts", default="0.1,0.2,0.3,0.5", help="shares to remove, with commas (%(default)s)")
    parser.add_argument("--tokens", default="1,16,128,1024", help="tokens in a pass, with commas (%(default)s)")
    parser.add_argument(
        "--new-tokens", type=int, default=32, help="tokens to generate, after a prompt of as many (%(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="a tiny random model, for continuous integration")
    parser.add_argument("--output", type=Path, default=RESULTS / "compact.json")
    options = parser.parse_args(arguments)
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    amounts = [float(amount) for amount in options.amounts.split(",")]
    counts, rounds = [int(count) for count in options.tokens.split(",")], options.rounds
    new_tokens, multiple = options.new_tokens, MULTIPLE
    if options.quick:
        model, ids, name = tiny_model(), torch.arange(64)[None], "a tiny random model"
        amounts, counts, rounds, new_tokens, multiple = [0.5], [1, 16], 2, 4, 32
    else:
        loaded = checkpoint.load(options.model or demo_model(), dtype="float32")
        model, name = loaded.model, Path(loaded.source).name
        ids = tokenise(builtin_texts()[0], loaded.tokenizer, 1, 1024).ids
    cases = [(torch.device("cpu"), torch.float32)]
    if torch.cuda.is_available():
        cases.append((torch.device("cuda"), torch.bfloat16))
    results: dict[str, Any] = {
        "provenance": provenance(seed=0),
        "protocol": {
            "model": name,
            "amounts": amounts,
            "multiple": multiple,
            "tokens": counts,
            "new_tokens": new_tokens,
            "rounds": rounds,
        },
        "cases": [],
        "memory": memory(model, ids, amounts, multiple),
    }
    for device, dtype in cases:
        # The tokens of one sequence do not keep a GPU busy.
        passes = counts if device.type == "cpu" else [*counts, 16 * max(counts)]
        results["cases"].append(study(model.to(device, dtype), ids, amounts, passes, new_tokens, rounds, multiple))
    if not options.quick:
        write_results(options.output, results, table)
        print(*(f"wrote {path}" for path in figures.compact(results, options.output.parent)))
    print(table(results))


if __name__ == "__main__":
    main()
