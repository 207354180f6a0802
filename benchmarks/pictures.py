"""Draw the pictures of the README and of the documentation from the demo model: ``python -m benchmarks.pictures``."""

from __future__ import annotations

import argparse
from pathlib import Path

import llmrank
from llmrank import ChainedFFNPipeline
from llmrank.cli.demo_models import demo_model
from llmrank.inspection.figures import DPI, draw_concentration, draw_layer, draw_removed_neurons
from llmrank.inspection.inspect_model import inspect_model
from llmrank.pipeline import CalibrationText
from llmrank.pipeline.registry import SCORERS
from llmrank.prune import GlobalPruner
from llmrank.score.pagerank import default_scorer

RESULTS = Path(__file__).parent / "results"
COMPARED = ("wpr", "activation")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="directory, hub name or .gguf file; default the demo model")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--sequence-length", type=int, default=1024)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    loaded = llmrank.load(options.model or demo_model(), dtype="float32")
    pipeline = ChainedFFNPipeline(
        loaded.model,
        loaded.tokenizer,
        scorer=default_scorer(),
        pruner=GlobalPruner(0.3, multiple_of=1, normalize="zscore"),
        calibration=CalibrationText(samples=options.samples, sequence_length=options.sequence_length),
        repair=None,
    )
    inspection = inspect_model(pipeline, {name: SCORERS.make(name) for name in COMPARED}, "wpr", "global")
    middle = list(inspection.layers)[len(inspection.layers) // 2]
    pictures = {
        "inspect_removed": draw_removed_neurons(inspection.main.importance, inspection.main.masks["global"], "global"),
        "inspect_layer": draw_layer(inspection, middle, top=16),
        "inspect_concentration": draw_concentration(inspection),
    }
    for stem, figure in pictures.items():
        path = options.output / f"{stem}.png"
        figure.savefig(path, dpi=DPI)
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
