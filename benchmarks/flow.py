"""Whether edges know which neurons are active: on the calibration text, and on text of another kind.

Run it as ``python -m benchmarks.flow --wikitext DIR --model A --model B``. For every FFN and every measure of its edges: the
correlation of what flows into a neuron along its edges (``P r`` of the weighted rank) with the neuron's activation, both as
logarithms; and for several scores the share of a layer's squared activations that the neurons which the score removes hold. No
model is pruned, so a run takes a minute or two.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.across import open_study, python_sources, study_parser
from benchmarks.result_files import write_results
from benchmarks.wikitext import read
from llmrank.calibration.collect import collect_statistics
from llmrank.calibration.statistics import FFNStatistics
from llmrank.models import find_ffns
from llmrank.pipeline.registry import make_pruner, make_scorer
from llmrank.prune.selection import choose_masks
from llmrank.score.model_graph import edge_weights
from llmrank.score.rank_graphs import rank_graphs
from llmrank.score.topologies import build_graphs
from llmrank.surgery import checkpoint

RESULTS = Path(__file__).parent / "results"
AMOUNT = 0.3
MEASURES = ("magnitude", "energy", "gate")
SCORERS = ("activation", "wanda-sp", "flap", "wpr", *(f"wpr:gamma={g},edges=gate" for g in (0.1, 0.2, 0.35)))
HEAD = (
    "Correlation: of the logarithm of what flows into a neuron along its edges (gamma 1) with the logarithm of its activation, "
    "within each layer; medians over the layers, and in brackets the quartiles. *down* is the norm of the neuron's column in the "
    "output map instead. Share lost: of the squared activations of a layer, the part that is in the 30 % of its neurons that the "
    "score removes; mean over the layers. All scores know the calibration text (WikiText-2, valid) alone."
)


def log_norms(statistics: Sequence[FFNStatistics]) -> list[np.ndarray[Any, Any]]:
    """Return the logarithms of the activations of hidden neurons, of each FFN."""
    return [np.log(entry.layers[1].norm.clamp(min=1e-30).numpy()) for entry in statistics]


def study(source: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the correlations of every layer, and the shares lost, of one model."""
    loaded = checkpoint.load(source, dtype=options.dtype)
    ffns = find_ffns(loaded.model)
    length = options.sequence_length
    texts = {
        "calibration": read(options.wikitext / "valid.txt", loaded.tokenizer, options.samples, length),
        "WikiText-2, test": read(options.wikitext / "test.txt", loaded.tokenizer, options.evaluate, length),
        "Python sources": python_sources(loaded.tokenizer, length),
    }
    statistics = {name: collect_statistics(loaded.model, ffns, text) for name, text in texts.items()}
    graphs = build_graphs(ffns, statistics["calibration"], "isolated")
    known = log_norms(statistics["calibration"])
    correlations: dict[str, list[float]] = {}
    for measure in MEASURES:
        ranks = rank_graphs(make_scorer(f"wpr:gamma=1.0,edges={measure}"), graphs)
        flows = [np.log(np.maximum(rank.scores[1], 1e-30)) for rank in ranks]
        correlations[measure] = [float(np.corrcoef(*pair)[0, 1]) for pair in zip(flows, known, strict=True)]
    columns = [edge_weights(entry.graph, 2).double().norm(dim=0).clamp(min=1e-30).log().numpy() for entry in graphs]
    correlations["down"] = [float(np.corrcoef(*pair)[0, 1]) for pair in zip(columns, known, strict=True)]
    lost: dict[str, dict[str, float]] = {}
    for scorer in SCORERS:
        ranks = rank_graphs(make_scorer(scorer), graphs)
        masks = choose_masks(make_pruner("local", amount=AMOUNT, multiple_of=1), graphs, ranks, jointly=True)
        lost[scorer] = {}
        for name in list(texts)[1:]:
            energies = [entry.layers[1].norm.square() for entry in statistics[name]]
            shares = [float(e[~keep].sum() / e.sum()) for e, keep in zip(energies, masks.values(), strict=True)]
            lost[scorer][name] = float(np.mean(shares))
    protocol = {name: text.provenance() for name, text in texts.items()}
    return {"protocol": protocol, "correlations": correlations, "lost": lost}


def table(results: dict[str, Any]) -> str:
    """Return the results in markdown."""
    models = results["models"]
    lines = [HEAD, "", f"| correlation | {' | '.join(models)} |", f"| --- |{' ---: |' * len(models)}"]
    for measure in (*MEASURES, "down"):
        cells = []
        for found in models.values():
            low, middle, high = np.percentile(found["correlations"][measure], [25, 50, 75])
            cells.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
        lines.append(f"| {measure} | {' | '.join(cells)} |")
    for name in next(iter(next(iter(models.values()))["lost"].values())):
        lines += ["", f"| share lost on {name} | {' | '.join(models)} |", f"| --- |{' ---: |' * len(models)}"]
        for scorer in SCORERS:
            shares = (found["lost"][scorer][name] for found in models.values())
            lines.append(f"| {scorer} | {' | '.join(f'{share:.1%}' for share in shares)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = study_parser(__doc__, RESULTS / "flow.json")
    options = parser.parse_args()
    results, models = open_study(options, parser)
    for name, source in models.items():
        results["models"][name] = study(source, options)
        write_results(options.output, results, table)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
