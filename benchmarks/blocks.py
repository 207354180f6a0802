"""Blocks that are left out: who chooses them, what the others make up for, and what as many parameters cost in neurons.

Run it as ``python -m benchmarks.blocks --wikitext DIR --model A --model B``. The texts and the evaluation are those of
``benchmarks.across``. Blocks are chosen in turn, as llmrank does; by the loss of each alone (Shortened LLaMA, arXiv 2402.02834);
by how much each turns the hidden states (block influence, ShortGPT, arXiv 2403.03853); as the run of blocks that turns them
least (arXiv 2403.17887); or at random. The rows "neurons" remove as many parameters by the default scorer and budget, by the
other budgets, with heads of attentions, or by the scores of other tools; "2SSP" removes neurons and whole attentions, by a
score of its own. With ``--repairs healed`` a repaired model learns from the dense one, from as many tokens of the same text in
every row. Every row has its difference from the first of the same amount and repair in nats per token, and the standard error
of that difference over sequences. A run continues its own result file.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import random
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cached_property
from itertools import pairwise, product
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn

from benchmarks.across import (
    DEFAULT,
    HEAD_OF_ITEMS,
    ITEMS,
    KINDS,
    REPAIRS,
    SCORES_OF_PEERS,
    Study,
    cell,
    kind_of,
    open_study,
    perplexity_of,
    share_right,
    study_parser,
)
from benchmarks.healing import own_text, text_to_heal
from benchmarks.pruning_peers import PEERS
from benchmarks.result_files import write_results
from benchmarks.two_ssp import TwoSSP, without
from llmrank.execution import Execution
from llmrank.execution.recording import Recording, recording
from llmrank.healing import DenseModel, Distillation, heal_model
from llmrank.models import PrunableLayer
from llmrank.models.costs import ModelCosts
from llmrank.models.forward import first_output, run_sequences
from llmrank.pipeline import Recipe, stages
from llmrank.pipeline.closeness.distance import DenseReference
from llmrank.pipeline.closeness.removal import losses_in_turn
from llmrank.pipeline.closeness.repair_validation import repair_where_it_helps
from llmrank.pipeline.closeness.sensitivity import first_sequences, layer_sensitivities
from llmrank.pipeline.registry import make_scorer
from llmrank.prune import BasePruner, LeastLossPruner, LocalPruner, SensitivityPruner
from llmrank.prune.budget import reached_amounts
from llmrank.prune.masks import Masks
from llmrank.prune.records.units import parse_targets
from llmrank.repair import LeastSquaresRepair, RepairedMap
from llmrank.surgery.apply import apply_masks

RESULTS = Path(__file__).parent / "results"
HEAD = (
    "Perplexity without some of the blocks, and without as many parameters of neurons, by the default scorer or the one that the "
    "row names. In brackets the difference from the first row in nats per token, and its standard error, paired over sequences: "
    "a difference of less than two errors says nothing. "
    "All rows are calibrated on WikiText-2's valid, and on a fifth as much of the built-in text, Python's language reference. "
    "WikiText-2's test is text of the first kind; the source code of Python's standard library is text of another kind."
)
HEALED, TOKENS = "healed", 65_536
STAGES = {**REPAIRS, HEALED: f"repaired and healed, with {TOKENS:,} tokens"}
TORCH_PRUNING = "Torch-Pruning, Taylor"
CHOICES = ("in turn", "alone", "block influence", "run of blocks", "random")
# Scorer and budget of the rows that remove neurons, and what they remove.
NEURONS: dict[str, tuple[str, type[BasePruner], str]] = {
    "neurons": (DEFAULT[0], LocalPruner, "neurons"),
    "neurons, sensitivity": (DEFAULT[0], SensitivityPruner, "neurons"),
    "neurons, least loss": (DEFAULT[0], LeastLossPruner, "neurons"),
    "neurons and heads, least loss": (DEFAULT[0], LeastLossPruner, "neurons,heads"),
    **{f"neurons, {scorer}": (scorer, LocalPruner, "neurons") for scorer in (*SCORES_OF_PEERS, TORCH_PRUNING)},
}
TWO_SSP = "2SSP"
LIBRARIES = {peer.name for peer in PEERS}


def chosen(study: BlockStudy, choice: str, count: int) -> list[int]:
    """Return the positions of the blocks that are left out."""
    blocks = study.ffns.blocks
    if choice == "random":
        return random.Random(0).sample(range(len(blocks)), count)
    if choice in ("in turn", "alone"):
        losses = study.alone if choice == "alone" else in_turn(study, count)
        return sorted(range(len(blocks)), key=lambda k: losses[blocks[k].name])[:count]
    states = study.states
    if choice == "block influence":
        turns = [turned(before, after) for before, after in pairwise(states)]
        return sorted(range(len(blocks)), key=turns.__getitem__)[:count]
    turns = [turned(states[k], states[k + count]) for k in range(len(states) - count)]
    first = min(range(len(turns)), key=turns.__getitem__)
    return list(range(first, first + count))


class BlockStudy(Study):
    """One model, and what the choices of blocks read."""

    def __init__(self, source: str, options: argparse.Namespace) -> None:
        super().__init__(source, options, "blocks")
        self.source = source
        self.sequences = self.tokens["default"].sequences
        self.recipe = Recipe(targets=("blocks",), pruner=LocalPruner(1))
        self.prepared = stages.find(self.model, self.tokenizer, self.recipe, Execution())

    @cached_property
    def _with_heads(self) -> Study:
        return Study(self.source, self.options, "neurons,heads")

    def study_of(self, choice: str) -> Study:
        """Return the study whose layers a row prunes: this one, or that of the same model with its heads."""
        return self._with_heads if choice in NEURONS and "heads" in NEURONS[choice][2] else self

    def parameters_of(self, count: int) -> int:
        """Return how many parameters are left out with so many of the first blocks."""
        gone = Masks({name: mask | (k >= count) for k, (name, mask) in enumerate(self.none.items())})
        return int(reached_amounts(gone, self.prepared.costs)["parameters"]["removed"])

    @cached_property
    def groups(self) -> dict[str, list[PrunableLayer]]:
        """The layers of every block."""
        return {
            block.name: [layer for layer in self.ffns.layers.values() if layer.block is block]
            for block in self.ffns.blocks
        }

    @cached_property
    def none(self) -> Masks:
        """The masks that leave out every block."""
        return Masks({name: torch.zeros(size, dtype=torch.bool) for name, size in self.ffns.sizes.items()})

    @cached_property
    def alone(self) -> dict[str, float]:
        """The loss of every block alone."""
        return layer_sensitivities(self.model, self.ffns, self.none, self.sequences, groups=self.groups)

    @cached_property
    def states(self) -> list[torch.Tensor]:
        """The hidden states in front of every block, and behind the last, of the tokens that sensitivities read."""
        blocks = [block.module for block in self.ffns.blocks]
        found: list[list[torch.Tensor]] = [[] for _ in range(len(blocks) + 1)]

        def note(module: nn.Module, args: tuple[torch.Tensor, ...], output: Any) -> None:
            found[blocks.index(module)].append(args[0].flatten(0, 1))
            if module is blocks[-1]:
                found[-1].append(first_output(output).flatten(0, 1))

        with ExitStack() as hooks:
            for module in blocks:
                hooks.callback(module.register_forward_hook(note).remove)
            run_sequences(self.model, self.ffns, first_sequences(self.sequences).batches(1))
        return [torch.cat(part) for part in found]


def turned(before: torch.Tensor, after: torch.Tensor) -> float:
    """Return the mean of 1 - cos of the angle between two hidden states of a token."""
    return 1.0 - float(nn.functional.cosine_similarity(before, after, dim=-1).mean())


def in_turn(study: BlockStudy, count: int) -> dict[str, float]:
    reference = DenseReference(study.model, study.ffns, first_sequences(study.sequences), Execution())
    return losses_in_turn(reference, study.groups, study.none, study.alone, count)


def masks_of(study: BlockStudy, choice: str, amount: float) -> Masks:
    """Choose what is kept: of blocks a share is left out, and of neurons as many parameters as `in turn` leaves out."""
    count = round(amount * len(study.ffns.blocks))
    if choice not in NEURONS:
        left_out = {study.ffns.blocks[k].name for k in chosen(study, choice, count)}
        return Masks(
            {
                name: torch.full((layer.size,), layer.block is None or layer.block.name not in left_out)
                for name, layer in study.ffns.layers.items()
            }
        )
    parameters = study.parameters_of(count)
    scorer, budget, targets = NEURONS[choice]
    owner = study.study_of(choice)
    if scorer in LIBRARIES:
        return study.masks(scorer, "local", "default", parameters / study.prepared.costs.total("ffn-parameters"))
    return masks_by_scores(owner, scorer, budget(parameters, amount_of="parameters", multiple_of=1), targets)


def masks_by_scores(study: Study, scorer: str, pruner: BasePruner, targets: str) -> Masks:
    """Choose neurons, or neurons and heads."""
    recipe = Recipe(scorer=make_scorer(scorer), pruner=pruner, targets=parse_targets(targets))
    tokens = study.tokens["default"]
    prepared = stages.find(study.model, study.tokenizer, recipe, Execution())
    study.calibrate("default")
    graphs = study.graphs["default"]
    used = recipe.chosen_scorer(stages.choose_scorer(prepared, recipe, graphs, tokens, Execution()))
    ranked = stages.RankedModel(graphs, stages.rank(used, graphs, Execution()), used)
    sensitivities = stages.measure_sensitivities(prepared, recipe, ranked, tokens, Execution())
    return stages.choose(prepared, recipe, ranked, sensitivities)


def row_of(study: BlockStudy, choice: str, amount: float, repair: str) -> dict[str, Any]:
    """Measure a row: what is left out, its share of the parameters, and the losses."""
    row: dict[str, Any] = {"choice": choice, "amount": amount, "repair": repair}
    begun = perf_counter()
    if choice == TWO_SSP:
        row |= row_of_2ssp(study, study.parameters_of(round(amount * len(study.ffns.blocks))), repair)
    else:
        masks, owner = masks_of(study, choice, amount), study.study_of(choice)
        row["left_out"] = [block.name for block in masks.left_out(owner.ffns.layers.values())]
        row["parameters"] = share_of_parameters(owner, masks)
        if repair != "none":
            owner.calibrate("default")
        dense = copy.deepcopy(owner.model) if repair == HEALED else None
        row |= losses_of(owner, masks, repair, owner.records.get("default"), dense)
    return {**row, "seconds": round(perf_counter() - begun, 1)}


def row_of_2ssp(study: BlockStudy, parameters: int, repair: str) -> dict[str, Any]:
    """Measure the row of 2SSP; `left_out` names attentions."""
    plan, tokens = TwoSSP(study.model, study.ffns, parameters), study.tokens["default"]
    masks = plan.masks(tokens.sequences)
    attentions = plan.attentions_in_turn(masks, tokens.sequences)
    dense = copy.deepcopy(study.model) if repair == HEALED else None
    of_attentions = len(attentions) * plan.size_of_attention / study.prepared.costs.model.parameters
    with without(attentions):
        # The repair reads a model without these attentions, and makes up for the neurons.
        with recording(study.model, study.ffns) as record:
            for part in tokens.parts:
                run_sequences(study.model, study.ffns, [] if part is None else part.batches(1))
        losses = losses_of(study, masks, repair, record, dense)
    return {
        "left_out": [attention.name for attention in attentions],
        "parameters": round(share_of_parameters(study, masks) + of_attentions, 4),
        **losses,
    }


def share_of_parameters(study: Study, masks: Masks) -> float:
    """Return which share of all parameters masks remove."""
    reached = reached_amounts(masks, ModelCosts(study.model, study.ffns))
    return round(reached["parameters"]["share"], 4)


def losses_of(
    study: Study, masks: Masks, repair: str, record: Recording | None, dense: nn.Module | None
) -> dict[str, Any]:
    """Return the losses of the pruned model, repaired unless there is no record, and healed by the dense model if it is given."""
    repaired: dict[str, RepairedMap] = {}
    if repair != "none" and record is not None:
        parts = study.tokens["default"].parts
        masks, repaired, _ = repair_where_it_helps(study.model, study.ffns, masks, LeastSquaresRepair(), parts, record)
    application = apply_masks(study.model, study.ffns, masks, repaired=repaired)
    try:
        return study.losses() if dense is None else healed_losses(study, dense)
    finally:
        application.undo()


def healed_losses(study: Study, dense: nn.Module) -> dict[str, Any]:
    """Heal a copy of the pruned model, and evaluate it."""
    model, options = copy.deepcopy(study.model), study.options
    text, notes = text_to_heal(study, dense, own_text(options), TOKENS, options.sequence_length)
    heal_model(model, DenseModel(dense), text, Distillation(TOKENS), Execution(batch_size=4), None, notes)
    return study.losses(model)


def table(results: dict[str, Any]) -> str:
    """Return all models in markdown."""
    lines = [HEAD + HEAD_OF_ITEMS]
    for name, found in results["models"].items():
        # What all rows of an amount remove, to a neuron: that of the blocks, which are measured first.
        shares = {row["amount"]: row["parameters"] for row in reversed(found["rows"])}
        for kind in (*KINDS, ITEMS):
            dense = kind_of(found["dense"], kind)
            if kind == ITEMS and "1" not in dense:
                continue
            value = f"{share_right(dense)} right" if kind == ITEMS else f"{perplexity_of(dense):.2f}"
            lines += ["", f"## {name} on {kind}: dense {value}", ""]
            for repair, words in STAGES.items():
                rows = [row for row in found["rows"] if row["repair"] == repair]
                amounts = sorted({row["amount"] for row in rows})
                by_key = {(row["choice"], row["amount"]): kind_of(row, kind) for row in rows}
                choices = [
                    choice for choice in (*CHOICES, *NEURONS, TWO_SSP) if any((choice, a) in by_key for a in amounts)
                ]
                first = {a: next(by_key[choice, a] for choice in choices if (choice, a) in by_key) for a in amounts}
                heads = [f"{a:.0%} of the blocks, {shares[a]:.1%} of the parameters" for a in amounts]
                lines += [f"| {words} | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(amounts)}"] if rows else []
                for choice in choices:
                    cells = [cell(by_key.get((choice, a)), first[a], dense) for a in amounts]
                    lines.append(f"| {choice} | {' | '.join(cells)} |")
                lines += [""] if rows else []
    return "\n".join(lines).rstrip() + "\n"


def settings(options: argparse.Namespace) -> Iterator[tuple[str, float, str]]:
    for amount, repair in product(map(float, options.amounts.split(",")), options.repairs.split(",")):
        for choice in (*CHOICES, *NEURONS, TWO_SSP):
            if any(fnmatch.fnmatchcase(choice, pattern) for pattern in options.only or ["*"]):
                yield choice, amount, repair


def main() -> None:
    parser = study_parser(__doc__, RESULTS / "blocks.json")
    parser.add_argument("--amounts", default="0.1,0.2", help="shares of the blocks, with commas (%(default)s)")
    parser.add_argument("--repairs", default="none,lstsq", help=f"with commas: {', '.join(STAGES)} (%(default)s)")
    parser.add_argument("--only", action="append", help="pattern of a row; may be repeated")
    options = parser.parse_args()
    results, models = open_study(options, parser)
    for name, source in models.items():
        study = BlockStudy(source, options)
        found = results["models"].setdefault(name, {"rows": []})
        found["protocol"] = study.protocol()
        found.setdefault("dense", None)
        found["dense"] = found["dense"] or study.losses()
        for choice, amount, repair in settings(options):
            if not any(
                (row["choice"], row["amount"], row["repair"]) == (choice, amount, repair) for row in found["rows"]
            ):
                found["rows"].append(row_of(study, choice, amount, repair))
                write_results(options.output, results, table)
                print(choice, amount, repair, round(perplexity_of(found["rows"][-1]), 2), flush=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
