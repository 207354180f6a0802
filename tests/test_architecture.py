"""Which module may import which: read from the sources, so that a wrong arrow fails before it spreads."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A module imports only from those above it.
GRAPHS = [
    "graphs.errors",
    "graphs.linalg.blocks",
    "graphs.linalg.validation",
    "graphs.structures.layered",
    "graphs.linalg.kernels",
    "graphs.linalg.operators",
    "graphs.linalg.cost_model",
    "graphs.linalg.backends",
    "graphs.linalg.transition",
    "graphs.linalg.layer_vectors",
    "graphs.solvers.certificate",
    "graphs.solvers.result",
    "graphs.checks",
    "graphs.solvers.problem",
    "graphs.solvers.iteration",
    "graphs.solvers.stationary",
    "graphs.solvers.accelerated",
    "graphs.solvers.krylov",
    "graphs.solvers.direct",
    "graphs.solvers.registry",
    "graphs.solvers",
    "graphs.ranking.layered_problem",
    "graphs.ranking.solve",
    "graphs.ranking.layered",
    "graphs.structures.digraph",
    "graphs.ranking.digraph_problem",
    "graphs.ranking.digraph",
    "graphs.reduction.backbone",
    "graphs.reduction.sparsify",
    "graphs.analysis.measures",
    "graphs.analysis.strengths",
    "graphs.analysis.flow",
    "graphs.analysis.layer_summary",
    "graphs.analysis.incident_edges",
    "graphs.analysis.node_summary",
    "graphs.analysis.paths",
    "graphs.reduction.edge_selection",
    "graphs.reduction.subgraphs",
    "graphs.structures.gallery",
    "graphs.structures.layering",
    "graphs.io.convert",
    "graphs.io.files",
    "graphs.io.shards",
    "graphs.io.arrays",
    "graphs.io.graph_files",
    "graphs.io.exchange.archive",
    "graphs.io.exchange.scan",
    "graphs.io.exchange.markup",
    "graphs.io.exchange.rows",
    "graphs.io.exchange.csv_files",
    "graphs.io.exchange.parquet_files",
    "graphs.io.exchange.assembly",
    "graphs.io.exchange.tables",
    "graphs.io.exchange",
    "graphs.draw.inputs",
    "graphs.draw.wording",
    "graphs.draw.axes",
    "graphs.draw.colours",
    "graphs.draw.convergence",
    "graphs.draw.scores",
    "graphs.draw.concentration",
    "graphs.draw.nodelink",
    "graphs.draw.adjacency",
    "graphs.draw.flow",
    "graphs.draw",
    "graphs",
]
LLMRANK = [
    "llmrank.errors",
    "llmrank.surgery.files",
    "llmrank.models.demo_models",
    "llmrank.models.loading",
    "llmrank.models.ffn",
    "llmrank.models.families",
    "llmrank.models.tracing",
    "llmrank.models.detect",
    "llmrank.models.explicit",
    "llmrank.models",
    "llmrank.calibration.text",
    "llmrank.calibration.contribution",
    "llmrank.calibration.residual",
    "llmrank.calibration.forward",
    "llmrank.calibration.statistics",
    "llmrank.calibration.attention",
    "llmrank.calibration.blockwise",
    "llmrank.score.model_graph",
    "llmrank.prune.masks",
    "llmrank.models.costs",
    "llmrank.score.base_scorer",
    "llmrank.score.pagerank",
    "llmrank.score.forward_backward",
    "llmrank.score.contribution",
    "llmrank.score.baselines",
    "llmrank.score.flap",
    "llmrank.score",
    "llmrank.score.rank_graphs",
    "llmrank.prune.layer_record",
    "llmrank.prune.order",
    "llmrank.prune.amounts",
    "llmrank.prune.protection",
    "llmrank.prune.base_pruner",
    "llmrank.prune.local_pruner",
    "llmrank.prune.global_pruner",
    "llmrank.prune.sensitivity_pruner",
    "llmrank.prune",
    "llmrank.prune.budget",
    "llmrank.prune.selection",
    "llmrank.prune.schedule",
    "llmrank.surgery.repair.moments",
    "llmrank.surgery.repair.methods",
    "llmrank.surgery.repair.sequential",
    "llmrank.surgery.repair",
    "llmrank.prune.reselection",
    "llmrank.surgery.apply",
    "llmrank.surgery.checkpoint",
    "llmrank.surgery.equivalence",
    "llmrank.evaluation.estimate",
    "llmrank.calibration.logits",
    "llmrank.calibration.generation",
    "llmrank.evaluation.perplexity",
    "llmrank.evaluation.fidelity",
    "llmrank.evaluation.last_word",
    "llmrank.evaluation.lm_eval",
    "llmrank.pipeline.sensitivity",
    "llmrank.pipeline.validation",
    "llmrank.pipeline.report",
    "llmrank.pipeline.options",
    "llmrank.pipeline.base_pipeline",
    "llmrank.pipeline.topologies",
    "llmrank.pipeline",
    "llmrank.inspection.inspection",
    "llmrank.inspection.summary",
    "llmrank.pipeline.registry",
    "llmrank",
]
# The programs on top of the library; they may import its face.
PROGRAMS = [
    "llmrank.inspection.figures",
    "llmrank.inspection.page_data",
    "llmrank.inspection.page",
    "llmrank.cli.demo",
    "llmrank.cli.progress",
    "llmrank.cli.options",
    "llmrank.cli.prune",
    "llmrank.cli.inspect",
    "llmrank.cli.evaluate",
    "llmrank.cli",
    "llmrank.__main__",
]
ORDER = [*GRAPHS, *LLMRANK, *PROGRAMS]

# Arrows that point up, each only for type checkers (T) or inside a function (F).
UPWARD = {
    ("graphs.errors", "graphs.solvers.result", "T"),  # ConvergenceError carries a RankResult
    ("graphs.structures.layered", "graphs.io.convert", "F"),  # to_scipy and the like are methods for the reader's sake
}

# What llmrank knows of graphs, module by module. Neurons become nodes in model_graph and the scorers rank them;
# the rest passes graphs and ranks on by type, or writes files as graphs does.
MEETING = {
    "llmrank.score.model_graph": {"graphs.LayeredGraph", "graphs.RankResult", "graphs.linalg.blocks.DenseBlock"},
    "llmrank.score.base_scorer": {"graphs.LayeredGraph", "graphs.RankResult", "graphs.solvers.result.Degenerate"},
    "llmrank.score.pagerank": {
        *("graphs.LayeredGraph", "graphs.RankResult", "graphs.modified_pagerank", "graphs.weighted_pagerank"),
        *("graphs.linalg.blocks.DenseBlock", "graphs.linalg.backends.TorchArithmetic"),
        *(
            "graphs.linalg.transition.Transition",
            "graphs.linalg.transition.modified_step",
            "graphs.linalg.transition.weighted_step",
        ),
    },
    "llmrank.score.forward_backward": {
        *("graphs.LayeredGraph", "graphs.RankResult", "graphs.weighted_pagerank", "graphs.solvers.result.Degenerate"),
    },
    "llmrank.score.contribution": {"graphs.LayeredGraph", "graphs.RankResult"},
    "llmrank.score.baselines": {"graphs.LayeredGraph", "graphs.RankResult"},
    "llmrank.score.flap": {"graphs.LayeredGraph", "graphs.RankResult"},
    "llmrank.score.rank_graphs": {"graphs.RankResult", "graphs.linalg.blocks.FloatArray"},
    "llmrank.prune.masks": {"graphs.GraphError", "graphs.io.files.read_tensors", "graphs.io.files.write_tensors"},
    "llmrank.prune.amounts": {"graphs.analysis.measures.count_of_share"},
    "llmrank.prune.selection": {"graphs.RankResult"},
    "llmrank.pipeline.report": {"graphs.io.files.replacing"},
    "llmrank.surgery.files": {"graphs.io.files.LOCK", "graphs.io.files.remove_leftovers", "graphs.io.files.workplace"},
    "llmrank.models.demo_models": {"graphs.io.files.remove_leftovers", "graphs.io.files.workplace"},
    "llmrank.pipeline.base_pipeline": {"graphs.LayeredGraph", "graphs.RankResult"},
    "llmrank.inspection.inspection": {"graphs.RankResult", "graphs.linalg.blocks.FloatArray"},
    "llmrank.cli": {"graphs.GraphError"},
    "llmrank.cli.evaluate": {"graphs.io.files.replacing"},
    "llmrank.inspection.summary": {
        *("graphs.analysis.measures.kept_overlap", "graphs.analysis.measures.rank_correlation"),
        *("graphs.analysis.node_summary.NodeFacts", "graphs.analysis.node_summary.node_facts"),
        *("graphs.analysis.paths.Path", "graphs.analysis.paths.strongest_paths"),
        *("graphs.analysis.layer_summary.LayerSummary", "graphs.analysis.layer_summary.summarise"),
    },
    "llmrank.inspection.page_data": {
        *(
            "graphs.analysis.measures.effective_number",
            "graphs.analysis.measures.gini",
            "graphs.analysis.measures.top_share",
        ),
        *("graphs.analysis.node_summary.strongest_edges", "graphs.analysis.strengths.strengths"),
    },
    "llmrank.inspection.page": {"graphs.io.files.replacing"},
    "llmrank.inspection.figures": {
        *("graphs.draw", "graphs.linalg.blocks.FloatArray"),
        *("graphs.analysis.measures.percentiles", "graphs.reduction.subgraphs.top_subgraph"),
    },
    "llmrank.cli.inspect": {
        *("graphs.save_graph", "graphs.save_rank", "graphs.reduction.subgraphs.top_subgraph"),
        *(f"graphs.io.exchange.{name}" for name in ("write_gexf", "write_graphml", "write_npz", "write_tables")),
    },
}
# Heavy or optional packages, and the only modules that import them at all.
ELSEWHERE = {
    "transformers": {
        *("llmrank.models.loading", "llmrank.models.ffn", "llmrank.models.detect", "llmrank.cli"),
        *("llmrank.calibration.logits", "llmrank.calibration.generation", "llmrank.surgery.checkpoint"),
    },
    "datasets": {"llmrank.calibration.text", "llmrank.evaluation.lm_eval"},
    "lm_eval": {"llmrank.evaluation.lm_eval"},
    "networkx": {
        *("graphs.structures.layered", "graphs.io.convert", "graphs.structures.layering", "graphs.io.exchange.markup"),
        *("graphs.structures.digraph", "graphs.ranking.digraph"),
    },
    "numba": {"graphs.linalg.kernels"},
    "matplotlib": {
        *("graphs.draw.axes", "graphs.draw.colours", "graphs.draw.scores", "graphs.draw.concentration"),
        *("graphs.draw.nodelink", "graphs.draw.adjacency", "graphs.draw.flow", "graphs.draw.convergence"),
        *("llmrank.inspection.figures", "llmrank.cli.demo"),
    },
    "plotly": {"llmrank.inspection.page"},
}
# Of these, what a library module imports only when asked for it.
LAZY = {"torch", "networkx", "matplotlib"}
# graphs.linalg.kernels is numba throughout: it is the module that loads when asked for.
LAZY_MODULES = {"graphs.linalg.kernels"}


@dataclass(frozen=True)
class Import:
    """One imported name, and where: M at module level, F in a function, T for type checkers."""

    module: str
    name: str
    where: str

    @property
    def target(self) -> str:
        """The module imported from: a name of a package may itself be a module."""
        full = f"{self.module}.{self.name}"
        return full if full in ORDER or is_module(full) else self.module


def path_of(module: str) -> Path:
    base = ROOT.joinpath(*module.split("."))
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


def is_module(name: str) -> bool:
    return name.split(".")[0] in ("graphs", "llmrank") and path_of(name).is_file()


def modules() -> list[str]:
    found = []
    for package in ("graphs", "llmrank"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


def walk(nodes: list[ast.stmt], where: str) -> Iterator[tuple[ast.stmt, str]]:
    for node in nodes:
        yield node, where
        inner = where
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            inner = "F"
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            inner = "T"
        for field in ("body", "orelse", "finalbody"):
            yield from walk(getattr(node, field, []), where if field == "orelse" and inner == "T" else inner)
        for handler in getattr(node, "handlers", []):
            yield from walk(handler.body, inner)


def imports(module: str) -> list[Import]:
    tree = ast.parse(path_of(module).read_text(encoding="utf-8"))
    found = []
    for node, where in walk(tree.body, "M"):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, "", where) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively, line {node.lineno}"
            assert node.module is not None
            found += [Import(node.module, alias.name, where) for alias in node.names]
    return found


MODULES = modules()
every_module = pytest.mark.parametrize("module", MODULES)


def test_order_names_every_module() -> None:
    missing = set(MODULES) - set(ORDER)
    assert not missing, f"new modules need a place in the order: {missing}"
    assert len(ORDER) == len(set(ORDER))


@every_module
def test_imports_come_from_above(module: str) -> None:
    place = ORDER.index(module)
    for entry in imports(module):
        target = entry.target
        if target.split(".")[0] not in ("graphs", "llmrank"):
            continue
        assert target in ORDER, f"{module} imports {target}, which is not there"
        upward = ORDER.index(target) >= place
        if upward:
            assert (module, target, entry.where) in UPWARD, f"{module} imports {target}, which stands below it"


@every_module
def test_graphs_know_nothing_of_models(module: str) -> None:
    if module.split(".")[0] == "graphs":
        roots = {entry.module.split(".")[0] for entry in imports(module)}
        assert not roots & {"llmrank", "transformers", "tokenizers", "accelerate", "gguf"}


@every_module
def test_the_two_vocabularies_meet_where_agreed(module: str) -> None:
    if module.split(".")[0] == "llmrank":
        known = {f"{entry.module}.{entry.name}" for entry in imports(module) if entry.module.split(".")[0] == "graphs"}
        extra = known - MEETING.get(module, set())
        assert not extra, f"{module} imports {sorted(extra)} from graphs"


def test_every_exception_is_in_use() -> None:
    """An allowance that nobody needs any more is taken back."""
    used = {(m, e.target, e.where) for m in MODULES for e in imports(m)}
    assert used >= UPWARD
    for module, names in MEETING.items():
        assert names <= {f"{entry.module}.{entry.name}" for entry in imports(module)}, module


@every_module
def test_heavy_packages_stay_in_their_places(module: str) -> None:
    for entry in imports(module):
        root = entry.module.split(".")[0]
        if root in ELSEWHERE:
            assert module in ELSEWHERE[root], f"{module} imports {root}"
        lazy = LAZY if module in GRAPHS else {"datasets", "lm_eval"}
        if root in lazy or entry.target in LAZY_MODULES:
            assert entry.where in "FT", f"{module} imports {entry.target} at module level"


@every_module
def test_names_say_what_is_inside(module: str) -> None:
    last = module.rsplit(".", 1)[-1]
    assert last not in {"util", "utils", "helper", "helpers", "common", "misc", "core", "base", "manager"}


@every_module
def test_public_names_are_listed_and_exist(module: str) -> None:
    if module == "llmrank.__main__":
        return
    loaded = importlib.import_module(module)
    assert loaded.__doc__
    listed = loaded.__all__
    assert len(listed) == len(set(listed))
    assert listed == sorted(listed, key=listed_order)
    for name in listed:
        assert hasattr(loaded, name), f"{module}.__all__ lists {name}"
        assert not name.startswith("_")


def listed_order(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions, as ruff sorts them."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


# Of the programs' packages one is the program.
@pytest.mark.parametrize("package", [name for name in GRAPHS + LLMRANK if path_of(name).name == "__init__.py"])
def test_package_faces_hold_no_logic(package: str) -> None:
    tree = ast.parse(path_of(package).read_text(encoding="utf-8"))
    docstring, *statements = tree.body
    assert isinstance(docstring, ast.Expr)
    for node in statements:
        face = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        assert face or isinstance(node, (ast.ImportFrom, ast.Import)), ast.unparse(node)


@pytest.mark.parametrize(
    ("package", "absent"),
    [
        ("graphs", ["torch", "numba", "networkx", "matplotlib", "transformers", "llmrank"]),
        ("llmrank", ["numba", "networkx", "matplotlib", "datasets", "lm_eval"]),
    ],
)
def test_importing_loads_no_more_than_needed(package: str, absent: list[str]) -> None:
    code = f"import sys, {package}; print([name for name in {absent!r} if name in sys.modules])"
    outcome = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, timeout=120
    )
    assert outcome.stdout.strip() == "[]"


def test_importing_sets_up_nothing() -> None:
    """No logging handlers, no change of torch's state, nothing printed."""
    code = (
        "import logging, torch; before = torch.get_num_threads(), torch.get_rng_state().tolist(), torch.is_grad_enabled(); "
        "import llmrank, llmrank.pipeline.registry, graphs; "
        "assert not logging.getLogger().handlers and not logging.getLogger('llmrank').handlers; "
        "assert before == (torch.get_num_threads(), torch.get_rng_state().tolist(), torch.is_grad_enabled())"
    )
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout == ""


def test_no_part_of_an_f_string_misses_its_f() -> None:
    """Of strings side by side each needs its own; without it a message shows a name in braces."""
    missed = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {part.value!r}"
        for package in ("graphs", "llmrank")
        for path in sorted((ROOT / package).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.JoinedStr)
        for part in node.values
        if isinstance(part, ast.Constant) and re.search(r"\{[A-Za-z_][\w.]*\}", str(part.value))
    ]
    assert not missed, missed
