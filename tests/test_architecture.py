"""The rooms of the two packages and their order, read from the sources: a wrong import fails before it spreads.

A new module costs no line here; a new room, or a heavy package in another room, does.
"""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import public_surface
from tests.house import FACES, circles, edges, imports, modules, path_of, room_of

ROOT = Path(__file__).parents[1]
# A room imports only from those before it, and all of graphs stands before llmrank.
ROOMS = [
    *("graphs.errors", "graphs.checks", "graphs.linalg", "graphs.solvers", "graphs.structures", "graphs.ranking"),
    *("graphs.analysis", "graphs.reduction", "graphs.io", "graphs.draw", "graphs"),
    *("llmrank.errors", "llmrank.bounded_files", "llmrank.cache", "llmrank.named_classes", "llmrank.progress"),
    *("llmrank.file_contents", "llmrank.version"),
    *("llmrank.models", "llmrank.text", "llmrank.execution"),
    *(
        "llmrank.calibration",
        "llmrank.score",
        "llmrank.prune",
        "llmrank.repair",
        "llmrank.surgery",
        "llmrank.evaluation",
        "llmrank.healing",
    ),
    *("llmrank.pipeline", "llmrank.inspection", "llmrank.experiments", "llmrank.integrations"),
    *("llmrank", "llmrank.cli", "llmrank.__main__"),
]
# Where neurons become nodes, and where graphs and ranks are shown; the others only pass them on, or write files as graphs does.
GRAPH_ROOMS = {"llmrank.score", "llmrank.inspection", "llmrank.experiments", "llmrank.cli"}
PASSED_ON = {"GraphError", "LayeredGraph", "RankResult", "FloatArray", "count_of_share"}
# Heavy or optional packages, and the only rooms that import them.
HEAVY = {
    "transformers": {"llmrank.models", "llmrank.text", "llmrank.surgery", "llmrank.evaluation", "llmrank.healing"},
    "peft": {"llmrank.healing"},
    "datasets": {"llmrank.text", "llmrank.evaluation"},
    "lm_eval": {"llmrank.evaluation"},
    "llmcompressor": {"llmrank.integrations"},
    "networkx": {"graphs.structures", "graphs.ranking", "graphs.io"},
    "numba": {"graphs.linalg"},
    "matplotlib": {"graphs.draw", "llmrank.inspection", "llmrank.experiments", "llmrank.cli"},
}
# Of these, what graphs and llmrank import only when it is asked for.
LAZY = {"graphs": {"torch", "networkx", "matplotlib"}, "llmrank": {"datasets", "lm_eval", "peft"}}
VAGUE = {"util", "utils", "helper", "helpers", "common", "misc", "core", "base", "manager"}
MODULES = modules()
ALL_IMPORTS = [(module, entry) for module in MODULES for entry in imports(module)]


def test_every_module_stands_in_a_room() -> None:
    assert {room_of(module) for module in MODULES} == set(ROOMS)


def test_rooms_import_from_those_before_them() -> None:
    wrong = [
        f"{module} imports {entry.target}"
        for module, entry in ALL_IMPORTS
        if entry.own and ROOMS.index(room_of(entry.target)) > ROOMS.index(room_of(module))
    ]
    assert not wrong, "\n".join(wrong)


def test_no_imports_run_in_circles() -> None:
    """Not even those inside a function or for type checkers."""
    assert circles({module: edges(module) for module in MODULES}) == []


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]


def test_a_room_uses_its_own_modules_by_name() -> None:
    """Its __init__ is for those outside."""
    wrong = [
        f"{module} imports from {entry.module}"
        for module, entry in ALL_IMPORTS
        if entry.own and path_of(entry.target).name == "__init__.py" and module.startswith(f"{entry.target}.")
    ]
    assert not wrong, "\n".join(wrong)


def test_graphs_know_nothing_of_models() -> None:
    foreign = {"llmrank", "transformers", "tokenizers", "accelerate", "gguf"}
    wrong = [
        (module, entry.module) for module, entry in ALL_IMPORTS if module.startswith("graphs") and entry.root in foreign
    ]
    assert not wrong


def test_the_two_vocabularies_meet_in_few_rooms() -> None:
    wrong = [
        f"{module} imports {entry.name} from {entry.module}"
        for module, entry in ALL_IMPORTS
        if module.startswith("llmrank") and entry.root == "graphs" and room_of(module) not in GRAPH_ROOMS
        if entry.name not in PASSED_ON and entry.module not in ("graphs.io.replacement", "graphs.io.tensor_files")
    ]
    assert not wrong, "\n".join(wrong)


def test_heavy_packages_stay_in_their_rooms() -> None:
    found: dict[str, set[str]] = {root: set() for root in HEAVY}
    for module, entry in ALL_IMPORTS:
        if entry.root in HEAVY:
            found[entry.root].add(room_of(module))
    assert found == HEAVY


def test_heavy_packages_load_when_asked_for() -> None:
    # Modules of kernels import numba at module level, and each other, and the module of a modifier imports llmcompressor, whose
    # class it extends; all others import them inside functions.
    heavy = {"numba", "llmcompressor"}
    extending = {module for module, entry in ALL_IMPORTS if entry.root in heavy and entry.where == "M"}
    wrong = [
        f"{module} imports {entry.target} at module level"
        for module, entry in ALL_IMPORTS
        if entry.where == "M"
        and (entry.root in LAZY[module.split(".")[0]] or (entry.target in extending and module not in extending))
    ]
    assert not wrong, "\n".join(wrong)


def test_names_say_what_is_inside() -> None:
    assert not [module for module in MODULES if module.rsplit(".", 1)[-1] in VAGUE]


def test_public_names_are_listed_and_exist() -> None:
    wrong = []
    for module in MODULES:
        if module != "llmrank.__main__":
            loaded = importlib.import_module(module)
            listed = loaded.__all__
            odd = [name for name in listed if name.startswith("_") or not hasattr(loaded, name)]
            if odd or not loaded.__doc__ or len(listed) != len(set(listed)):
                wrong.append(f"{module}: {odd or 'no docstring, or a name twice'}")
    assert not wrong, "\n".join(wrong)


def test_the_public_surface_changes_on_purpose_alone() -> None:
    """A name, parameter or option that goes breaks somebody's program: docs/releases.md says how it may."""
    noted = public_surface.FILE.read_text(encoding="utf-8")
    assert public_surface.surface() == noted, (
        "if this is meant, run python -m tests.public_surface, and note it in the changelog"
    )


@pytest.mark.parametrize("package", sorted(each for each in FACES if path_of(each).with_suffix(".pyi").is_file()))
def test_names_that_are_imported_when_they_are_used_are_those_of_the_stub(package: str) -> None:
    stub = path_of(package).with_suffix(".pyi").read_text(encoding="utf-8")
    (listed,) = (ast.literal_eval(node.value) for node in ast.parse(stub).body if isinstance(node, ast.Assign))
    assert sorted(importlib.import_module(package).__all__) == sorted(listed)


def test_package_faces_hold_no_logic() -> None:
    for package in FACES - {"llmrank.cli"}:  # the program itself
        _, *statements = ast.parse(path_of(package).read_text(encoding="utf-8")).body
        for node in statements:
            names = isinstance(node, (ast.Assign, ast.AnnAssign)) and "__all__" in ast.unparse(node).split("=")[0]
            assert names or isinstance(node, (ast.ImportFrom, ast.Import)), f"{package}: {ast.unparse(node)}"


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import graphs", ["numpy", "scipy", "llmrank"]),
        ("from graphs import *", ["torch", "numba", "networkx", "matplotlib", "transformers", "llmrank"]),
        ("import llmrank, llmrank.cli", ["numpy", "scipy", "torch"]),
        ("from llmrank import *", ["numba", "networkx", "matplotlib", "datasets", "lm_eval", "llmcompressor"]),
    ],
)
def test_importing_loads_no_more_than_needed(code: str, absent: list[str]) -> None:
    code += f"; import sys; print([name for name in {absent!r} if name in sys.modules])"
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
