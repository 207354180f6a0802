"""The house in numbers, and how it hangs together: ``python -m tests.house``.

It prints entries a level, import circles, functions over 60 lines, files over 400 lines, lines of code and of docstrings, how
many test cases there are and how many of them are not slow, and the words of the README. The numbers are for looking; it fails
only where imports run in circles.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import networkx

ROOT = Path(__file__).parents[1]
PACKAGES = ("graphs", "llmrank")
LONG_FUNCTION, LONG_FILE = 60, 400
NOT_COUNTED = {"__init__.py", "__main__.py", "py.typed", "__pycache__"}


@dataclass(frozen=True)
class Import:
    """One imported name, and where: M at module level, F in a function, T for type checkers."""

    module: str
    name: str
    where: str

    @property
    def root(self) -> str:
        return self.module.split(".")[0]

    @property
    def own(self) -> bool:
        """Whether it is one of the two packages that is imported."""
        return self.root in PACKAGES

    @property
    def target(self) -> str:
        """The module imported from: a name of a package may itself be a module."""
        full = f"{self.module}.{self.name}"
        return full if self.own and path_of(full).is_file() else self.module


def path_of(module: str) -> Path:
    base = ROOT.joinpath(*module.split("."))
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


def modules() -> list[str]:
    found = []
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


def room_of(module: str) -> str:
    """The folder or file directly inside one of the packages."""
    return ".".join(module.split(".")[:2])


FACES = {module for module in modules() if path_of(module).name == "__init__.py"}


def imports(module: str) -> list[Import]:
    tree = ast.parse(path_of(module).read_text(encoding="utf-8"))
    found = []
    for node, where in _statements(tree.body, "M"):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, "", where) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively, line {node.lineno}"
            assert node.module is not None
            found += [Import(node.module, alias.name, where) for alias in node.names]
    stub = path_of(module).with_suffix(".pyi")  # what a package imports when it is asked for it
    for node in ast.parse(stub.read_text(encoding="utf-8")).body if stub.is_file() else []:
        if isinstance(node, ast.ImportFrom):
            found += [Import(f"{module}.{node.module}", alias.name, "F") for alias in node.names if node.module]
    return found


def _statements(nodes: Iterable[ast.stmt], where: str) -> Iterator[tuple[ast.stmt, str]]:
    for node in nodes:
        yield node, where
        inner = where
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            inner = "F"
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            inner = "T"
        for field in ("body", "orelse", "finalbody"):
            yield from _statements(getattr(node, field, []), where if field == "orelse" and inner == "T" else inner)
        for handler in getattr(node, "handlers", []):
            yield from _statements(handler.body, inner)


def edges(module: str) -> set[str]:
    """The modules of the two packages that a module imports."""
    return {entry.target for entry in imports(module) if entry.own}


def circles(imported: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Sets of modules that import each other, directly or through others."""
    graph = networkx.DiGraph([(module, target) for module, targets in imported.items() for target in targets])
    return sorted(sorted(found) for found in networkx.strongly_connected_components(graph) if len(found) > 1)


def entries() -> dict[str, int]:
    """How many files and folders every folder of the packages has."""
    folders = [
        folder for package in PACKAGES for folder in (ROOT / package, *(ROOT / package).rglob("*")) if folder.is_dir()
    ]
    return {
        str(folder.relative_to(ROOT)): len([path for path in folder.iterdir() if path.name not in NOT_COUNTED])
        for folder in sorted(folders)
        if folder.name != "__pycache__"
    }


def long_files() -> dict[str, int]:
    lengths = {module: len(path_of(module).read_text(encoding="utf-8").splitlines()) for module in modules()}
    return {module: length for module, length in lengths.items() if length > LONG_FILE}


def long_functions() -> dict[str, int]:
    """Functions whose code is long; the lines of their docstring do not count."""
    found = {}
    for module in modules():
        for node in ast.walk(ast.parse(path_of(module).read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                documented = ast.get_docstring(node) is not None
                doc = node.body[0].end_lineno - node.body[0].lineno + 1 if documented else 0  # type: ignore[operator]
                length = node.end_lineno - node.lineno + 1 - doc  # type: ignore[operator]
                if length > LONG_FUNCTION:
                    found[f"{module}.{node.name}"] = length
    return found


def code_lines(path: Path) -> tuple[int, int]:
    """Lines that hold code and nothing else counts, and lines of docstrings."""
    source = path.read_text(encoding="utf-8")
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            if ast.get_docstring(node, clean=False) is not None and first is not None:
                docstrings.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    no_code = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    code = {
        line
        for token in tokenize.generate_tokens(StringIO(source).readline)
        if token.type not in no_code
        for line in range(token.start[0], token.end[0] + 1)
    }
    return len(code - docstrings), len(docstrings)


def counted(folder: str) -> tuple[int, int]:
    """Lines of code and of docstrings of all modules of a folder."""
    found = [code_lines(path) for path in (ROOT / folder).rglob("*.py")]
    return sum(code for code, _ in found), sum(docstrings for _, docstrings in found)


def words() -> int:
    return len((ROOT / "README.md").read_text(encoding="utf-8").split())


def cases() -> str:
    """Return what pytest says of the test cases that it finds, where those that are not slow come first."""
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-m", "not slow", "-p", "no:cacheprovider"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()[-1]


def main() -> int:
    found = circles({module: edges(module) for module in modules()})
    print("entries a level:", ", ".join(f"{folder} {count}" for folder, count in entries().items()))
    print("import circles:", found or 0)
    print(f"functions over {LONG_FUNCTION} lines:", long_functions() or 0)
    print(f"files over {LONG_FILE} lines:", long_files() or 0)
    for folder in (*PACKAGES, "tests", "benchmarks"):
        code, docstrings = counted(folder)
        print(f"{folder}: {code} lines of code, {docstrings / code:.2f} of docstrings for each")
    print("test cases:", cases())
    print("words of README.md:", words())
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
