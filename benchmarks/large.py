"""Time and memory to prune models of the shapes that people use, with random weights, in memory and block by block.

Run it as ``python -m benchmarks.large --directory DIR`` on an idle machine; DIR gets a checkpoint of each shape (1.9 GB for
``1b``, 14 GB for ``8b``), which later runs read again. The calibration text is random tokens. Memory is the highest of the
process, every 10 ms, without the pages of files that the system may drop; the first figure is that of the libraries and of the
model's code. Time is given by stage, and in total in units of the calibration, which is one forward pass. A run continues its own
result file; every row is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

from benchmarks.quality import RESULTS
from benchmarks.result_files import opened, write_results
from llmrank.execution.work_directory import SHARD_BYTES
from llmrank.pipeline import CalibrationText, IsolatedFFNPipeline
from llmrank.pipeline.registry import make_repair
from llmrank.pipeline.stopwatch import Stopwatch
from llmrank.score.pagerank import default_scorer
from llmrank.surgery import checkpoint

# Hidden size, neurons, layers, heads, key and value heads: of Llama 3.2 1B, Llama 3.1 8B, and the first 4 layers of the latter.
SHAPES = {
    "tiny": (64, 192, 2, 4, 2),
    "1b": (2048, 8192, 16, 32, 8),
    "8b": (4096, 14336, 32, 32, 8),
    "8b-4-layers": (4096, 14336, 4, 32, 8),
}
VOCABULARY, AMOUNT = 4096, 0.3
GIGABYTE = 1e9


def configuration(shape: str) -> transformers.LlamaConfig:
    """Return the configuration of a shape, with a small vocabulary."""
    hidden, neurons, layers, heads, key_values = SHAPES[shape]
    return transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=neurons,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_values,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
        dtype=torch.bfloat16,
    )


def make_checkpoint(directory: Path, shape: str) -> None:
    """Write a checkpoint of random bfloat16 weights, block by block."""
    config = configuration(shape)
    with torch.device("meta"):
        tensors = transformers.LlamaForCausalLM(config).state_dict()
    directory.mkdir(parents=True)
    files: dict[str, list[str]] = {}
    for name in tensors:
        parts = name.split(".")
        files.setdefault(f"block-{parts[2]}" if parts[1] == "layers" else "rest", []).append(name)
    generator = torch.Generator().manual_seed(0)
    index: dict[str, str] = {}
    for number, (part, names) in enumerate(files.items(), start=1):
        file = f"model-{number:05}-of-{len(files):05}.safetensors"
        values = {name: _random(tensors[name].shape, name, generator) for name in names}
        save_file(values, directory / file, {"format": "pt"})
        index |= dict.fromkeys(names, file)
        print(f"wrote {part}", flush=True)
    text = json.dumps({"metadata": {}, "weight_map": index})
    (directory / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    config.save_pretrained(directory)


def _random(shape: torch.Size, name: str, generator: torch.Generator) -> torch.Tensor:
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    values = torch.randn(shape, generator=generator) * (1.0 if "embed" in name else 0.02)
    if "up_proj" in name:  # neurons differ in size, as in a trained model
        values *= torch.exp(0.5 * torch.randn(shape[0], 1, generator=generator))
    return values.bfloat16()


class Memory:
    """The highest memory of this process, without pages of files."""

    def __init__(self) -> None:
        self.peak, self._stopped = 0, False
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self._stopped:
            self.peak = max(self.peak, self.now())
            time.sleep(0.01)

    @staticmethod
    def now() -> int:
        """Return the anonymous and shared memory of this process in bytes (Linux)."""
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon", "RssShmem")))

    def take(self) -> int:
        """Return the peak since the last call."""
        peak, self.peak = max(self.peak, self.now()), 0
        return peak


class MemoryWatch(Stopwatch):
    """Adds up the seconds of stages, and takes the peak of the memory in each."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = Memory()
        self.peaks = {"start": self.memory.take()}

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        with super().timed(stage):
            yield
        self.peaks[stage] = max(self.peaks.get(stage, 0), self.memory.take())

    def stages(self) -> dict[str, dict[str, float]]:
        return {name: {"seconds": self.seconds.get(name, 0.0), "peak_bytes": peak} for name, peak in self.peaks.items()}


def measure(directory: Path, mode: str, repair: str, sequences: int, length: int) -> dict[str, Any]:
    """Prune a checkpoint and save the result; return seconds and peak memory by stage."""
    watch = MemoryWatch()
    with TemporaryDirectory(dir=directory.parent) as place:
        with watch.timed("load"):
            loaded = checkpoint.load(directory)
        ids = torch.randint(VOCABULARY, (sequences, length), generator=torch.Generator().manual_seed(1))
        low = mode == "block by block"
        pipeline = IsolatedFFNPipeline(
            loaded.model,
            None,
            scorer=default_scorer(),
            calibration=CalibrationText(ids, sequence_length=length),
            repair=make_repair(repair),
            undoable=False,
            work_directory=Path(place) / "work" if low else None,
        )
        pipeline.run(watch)
        with watch.timed("save"):
            report = None if pipeline.report is None else pipeline.report.to_dict()
            shard_bytes = SHARD_BYTES if low else None
            checkpoint.save(Path(place) / "out", loaded.model, None, pipeline.masks, report, shard_bytes=shard_bytes)
        written = sum(file.stat().st_size for file in (Path(place) / "out").glob("*.safetensors"))
    stages = watch.stages()
    return {
        "stages": stages,
        "seconds": sum(entry["seconds"] for entry in stages.values()),
        "peak_bytes": max(entry["peak_bytes"] for entry in stages.values()),
        "read_bytes": sum(file.stat().st_size for file in directory.glob("*.safetensors")),
        "written_bytes": written,
    }


def table(results: dict[str, Any]) -> str:
    """Return the results in markdown."""
    lines = [
        f"Pruned by {AMOUNT:.0%} and saved. Seconds by stage; the rest is finding, checking and choosing. Passes: the sum in",
        "units of the calibration, which is one forward pass of the tokens. Memory without pages of files.",
        "",
        "| shape | run | repair | checkpoint | memory | calibrate s | rank s | repair s | apply s | save s | sum s | passes |",
        "| --- | --- | --- |" + " ---: |" * 9,
    ]
    for key, row in results["rows"].items():
        shape, mode, repair = key.split(" | ")
        seconds = {stage: entry["seconds"] for stage, entry in row["stages"].items()}
        parts = [f"{seconds.get(stage, 0.0):.0f}" for stage in ("calibrate", "rank", "repair", "apply", "save")]
        sizes = [f"{row[name] / GIGABYTE:.2f} GB" for name in ("read_bytes", "peak_bytes")]
        passes = f"{row['seconds'] / seconds['calibrate']:.1f}"
        lines.append(f"| {' | '.join([shape, mode, repair, *sizes, *parts, format(row['seconds'], '.0f'), passes])} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None, run: Callable[..., Any] = subprocess.run) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, required=True, help="where checkpoints are and temporary files go")
    parser.add_argument("--shapes", default="1b,8b", help=f"of {', '.join(SHAPES)} (%(default)s)")
    parser.add_argument("--modes", default="block by block", help="in memory, block by block (%(default)s)")
    parser.add_argument("--repairs", default="none", help="none, lstsq (%(default)s)")
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--output", type=Path, default=RESULTS / "large.json")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.row is not None:
        shape, mode, repair = options.row.split(" | ")
        place = options.directory / shape
        print(json.dumps(measure(place, mode, repair, options.sequences, options.sequence_length)))
        return
    protocol = {"sequences": options.sequences, "sequence_length": options.sequence_length, "vocabulary": VOCABULARY}
    results = opened(options.output, {**protocol, "dtype": "bfloat16", "amount": AMOUNT})
    rows = results.setdefault("rows", {})
    for shape in options.shapes.split(","):
        place = options.directory / shape
        if not place.is_dir():
            make_checkpoint(place, shape)
        for mode in options.modes.split(","):
            for repair in options.repairs.split(","):
                key = f"{shape} | {mode} | {repair}"
                if key in rows:
                    continue
                sizes = ["--sequences", str(options.sequences), "--sequence-length", str(options.sequence_length)]
                command = [
                    sys.executable,
                    "-m",
                    "benchmarks.large",
                    "--directory",
                    str(options.directory),
                    *sizes,
                    "--row",
                    key,
                ]
                rows[key] = json.loads(run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
                write_results(options.output, results, table)
                print(key, f"{rows[key]['peak_bytes'] / GIGABYTE:.2f} GB, {rows[key]['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
