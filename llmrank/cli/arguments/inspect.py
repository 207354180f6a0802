"""What ``llmrank inspect`` takes."""

from __future__ import annotations

import argparse
from pathlib import Path

from llmrank.cli.arguments.shared import add_method_options, add_model_options
from llmrank.cli.demo_models import DEMO_NAME

__all__ = ["DEFAULT_FORMATS", "add_inspect_options"]

DEFAULT_FORMATS = "png,svg,html"


def add_inspect_options(command: argparse.ArgumentParser) -> None:
    """Add the options of ``llmrank inspect``."""
    command.add_argument("model", metavar="MODEL", nargs="?", help=f"default: {DEMO_NAME}")
    command.add_argument(
        "--output",
        type=Path,
        help="directory to write, absent or empty: summary.json, figures, and index.html, a page to explore the model in a "
        "browser; without it only the tables are printed",
    )
    command.add_argument(
        "--format",
        default=DEFAULT_FORMATS,
        help="formats to write: png, svg, html, and for graphs graphml, gexf, neuronpedia (only the highest nodes) and "
        "safetensors, npz, csv, parquet (complete graphs); with --contexts contexts.csv, contexts.json (%(default)s)",
    )
    command.add_argument(
        "--layers",
        help="layers to list and draw, such as 0-3,29 or a name, with their experts if they are mixtures (all are listed, and "
        "three of them drawn)",
    )
    command.add_argument(
        "--top", type=int, default=20, help="number of nodes of each layer in drawn and written subgraphs (%(default)s)"
    )
    command.add_argument(
        "--compare",
        help="scorers to compare with, separated by commas, or none (all scorers, with their default options)",
    )
    command.add_argument(
        "--neuron",
        action="append",
        default=[],
        metavar="LAYER:N",
        help="describe neuron N of this layer, or of this expert, with the contexts in which it is most active and the tokens "
        "that it promotes and demotes; can be repeated",
    )
    command.add_argument(
        "--contexts",
        action="store_true",
        help="find for every neuron the contexts in which it is most active and the tokens that it promotes and demotes, and "
        "what the pruned model predicts worse: for the page, and for --format contexts.csv,contexts.json; costs three passes of "
        "the calibration text, and a product of all output maps with the head",
    )
    command.add_argument("--open", action="store_true", help="open the page in a browser")
    add_model_options(command.add_argument_group("model"))
    add_method_options(command, prunes=False)
    # People come to see a graph and its rank, and a choice may take a score that no graph explains.
    command.set_defaults(calibration="built-in", scorer="wpr:gamma=0.15,edges=gate")
