"""Settings of the documentation, built by ``sphinx-build -W --keep-going docs docs/_build/html``.

The pages of the API reference are written from the ``__all__`` of every module before Sphinx reads its sources, so that a new
module or name appears without a line here. Nothing is executed and nothing is fetched.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import GenericAlias, ModuleType
from typing import Any, TypeVar, get_origin

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

DOCS = Path(__file__).parent
API = DOCS / "api"
MEASURED = DOCS / "results" / "measured"
RESULTS = DOCS.parent / "benchmarks" / "results"
PACKAGES = ("graphs", "llmrank")
sys.path.insert(0, str(DOCS.parent))

project = "llmrank"
author = "The llmrank developers"
extensions = ["sphinx.ext.autodoc", "sphinx.ext.viewcode", "numpydoc", "myst_nb"]
exclude_patterns = ["_build"]
# Every reference to a name of our own must be found. There is no inventory of other projects, because the build needs no network.
nitpicky = True
nitpick_ignore_regex = [
    # The types of a signature: those of other packages, and type variables.
    ("py:(class|obj)", r"(?!(graphs|llmrank)\.).*"),
    ("py:(class|obj)", r".*\.[A-Z]"),
    ("py:.*", r"(torch|numpy|scipy|networkx|matplotlib|transformers|safetensors)\b.*"),
]

html_math_renderer = "mathml"
html_theme = "pydata_sphinx_theme"
html_title = "llmrank"
html_theme_options = {
    "header_links_before_dropdown": 8,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "navigation_with_keys": False,
}
# Pages without pages below them have nothing to list at the side.
html_sidebars = {name: [] for name in ("index", "inspect", "pagerank", "releases", "glossary")}
html_static_path = ["_static"]
html_css_files = ["style.css"]
copyright = "The llmrank developers, Apache-2.0"

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
myst_update_mathjax = False
nb_execution_mode = "off"  # a step of .ci/run executes the notebooks; here their stored outputs are shown

autodoc_typehints_format = "short"
python_maximum_signature_line_length = 100
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False


def module_names(package: str) -> list[str]:
    """Name a package and every module in it, each package before its modules."""
    root = importlib.import_module(package)
    found = pkgutil.walk_packages(root.__path__, f"{package}.")
    return [package, *(module.name for module in found if not module.name.endswith("__main__"))]


def write_api_pages(*_: Any) -> None:
    """Write one page for every module."""
    API.mkdir(exist_ok=True)
    names = [name for package in PACKAGES for name in module_names(package)]
    pages = {f"{name}.rst": module_page(importlib.import_module(name), names) for name in names}
    pages["index.rst"] = index_page()
    write_pages(API, pages)


def copy_notebooks(*_: Any) -> None:
    """Copy the notebooks beside the pages, because Sphinx reads no file outside its folder."""
    notebooks = {path.name: path.read_text(encoding="utf-8") for path in (DOCS.parent / "notebooks").glob("*.ipynb")}
    write_pages(DOCS / "notebooks", notebooks)


def write_measured_pages(*_: Any) -> None:
    """Write one page for every result, as the benchmarks left it."""
    pages = {}
    for path in sorted(RESULTS.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        # The name of the file becomes the only title of the first level.
        text = re.sub("^#", "##", text, flags=re.MULTILINE) if re.search("^# ", text, flags=re.MULTILINE) else text
        pages[path.name] = f"# {path.stem}\n\n{text}"
    names = [name.removesuffix(".md") for name in pages]
    introduction = "Every row that was measured, as the benchmarks wrote it."
    pages["index.rst"] = "\n".join([*title("Measured in full"), introduction, "", *toctree(names)])
    write_pages(MEASURED, pages)


def lead_to_built_pages(_app: Any, _name: str, source: list[str]) -> None:
    """Let links lead to the pages that the build makes of results and notebooks; in the repository they lead to these files."""
    text = re.sub(r"\]\((?:\.\./)+benchmarks/results/?\)", "](/results/measured/index.rst)", source[0])
    text = re.sub(r"\]\((?:\.\./)+benchmarks/results/(\w+\.md)", r"](/results/measured/\1", text)
    source[0] = re.sub(r"\]\((?:\.\./)+notebooks/(\w+\.ipynb)", r"](/notebooks/\1", text)


def write_pages(folder: Path, pages: Mapping[str, str]) -> None:
    """Write pages, leave those alone that have not changed, and remove those that nobody writes any more."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        if path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def index_page() -> str:
    """List the packages."""
    lines = [*title("API reference"), "Every public name, by the module that defines it.", ""]
    lines += [f"- :doc:`{name}`: {summary(importlib.import_module(name))}" for name in PACKAGES]
    return "\n".join([*lines, "", *toctree(PACKAGES, hidden=True)])


def module_page(module: ModuleType, names: list[str]) -> str:
    """Document the names that a module defines, and link those that it imports for its users."""
    name = module.__name__
    lines = [*title(name), f".. automodule:: {name}", "   :no-members:", ""]
    own, imported = [], []
    for public in getattr(module, "__all__", ()):
        value = getattr(module, public)
        if isinstance(value, ModuleType):  # listed below
            continue
        home = getattr(value, "__module__", name) if callable(value) else name
        target = f"{home}.{public}"
        (own if home == name or home.split(".")[0] not in PACKAGES else imported).append((public, value, target))
    if imported:
        lines += ["Names to import from here, and where they are defined:", ""]
        lines += [f"- :py:obj:`{public} <{target}>`: {summary(value)}" for public, value, target in imported]
        lines.append("")
    for public, value, _ in own:
        if inspect.isclass(value) and not isinstance(value, GenericAlias):
            lines += [f".. autoclass:: {name}.{public}", "   :members:", "   :show-inheritance:", ""]
        elif inspect.isroutine(value):
            lines += [f".. autofunction:: {name}.{public}", ""]
        else:
            lines += [f".. py:data:: {name}.{public}", "", f"   {data_text(module, public)}", ""]
    inside = [other for other in names if other.rpartition(".")[0] == name]
    if inside:
        lines += ["Modules:", ""]
    lines += [f"- :doc:`{other}`: {summary(importlib.import_module(other))}" for other in inside]
    return "\n".join([*lines, "", *toctree(inside, hidden=True)])


def data_text(module: ModuleType, public: str) -> str:
    """Say what a constant or an alias is: its value where that is short, else its type."""
    value, annotation = getattr(module, public), module.__annotations__.get(public)
    plain = isinstance(value, (str, int, float)) or (
        isinstance(value, tuple) and all(isinstance(entry, (str, int, float)) for entry in value)
    )
    if plain and len(repr(value)) < 400:
        return f"``{value!r}``"
    if isinstance(value, TypeVar):
        return "A type variable."
    if annotation in (None, "TypeAlias"):
        return (
            f"An alias of ``{value}``." if annotation or get_origin(value) else f"Of type ``{type(value).__name__}``."
        )
    return f"Of type ``{annotation}``."


def title(text: str) -> list[str]:
    """Underline a title."""
    return [text, "=" * len(text), ""]


def summary(value: Any) -> str:
    """Return the first paragraph of a docstring in one line."""
    paragraph = (inspect.getdoc(value) or "").split("\n\n")[0].split()
    # A reference may be relative to the place of the docstring, and so would lead nowhere from here.
    return without_substitutions(re.sub(r":\w+:`~?([^`]+)`", r"``\1``", " ".join(paragraph)))


def toctree(names: Any, *, hidden: bool = False) -> list[str]:
    """List pages, or hide the list where the page has a better one."""
    options = ["   :hidden:"] if hidden else ["   :maxdepth: 1"]
    return [".. toctree::", *options, "", *(f"   {name}" for name in names), ""] if names else []


def find_where_defined(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """Resolve a name by the module that defines it: ``graphs.pagerank`` is ``graphs.ranking.digraph.pagerank``.

    A name may also be one that the module or the class of the docstring knows. One that exists but has no entry of its own, such
    as a field of a dataclass, is shown without a link.
    """
    if node.get("refdomain") != "py":
        return None
    target, module, owner = str(node["reftarget"]), node.get("py:module"), node.get("py:class")
    places = [target] if target.split(".")[0] in PACKAGES else []
    places += [f"{module}.{owner}.{target}"] if module and owner else []
    places += [f"{module}.{target}"] if module else []
    for place in places:
        for full in names_of(place):
            found = env.get_domain("py").resolve_xref(env, node["refdoc"], app.builder, "obj", full, node, contnode)
            if found is not None:
                return found
    return contnode if any(exists(place) for place in places) else None


def names_of(place: str) -> list[str]:
    """List the names under which an object may be documented: where it is, and where its class is, are defined."""
    holder, _, last = place.rpartition(".")
    names = []
    for value, rest in ((load(place), ""), (load(holder), f".{last}")):
        home, qualified = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
        if home and qualified:
            names.append(f"{home}.{qualified}{rest}")
    return [*names, place]


def exists(place: str) -> bool:
    """Tell whether there is such an object, or such an entry in the docstring of its class."""
    holder, _, last = place.rpartition(".")
    owner = load(holder)
    entry = rf"^(.*, )?{re.escape(last)}(, .*)?( :|$)"
    described = inspect.isclass(owner) and re.search(entry, inspect.getdoc(owner) or "", flags=re.MULTILINE)
    return load(place) is not None or bool(described)


def math_as_text(translator: Any, node: nodes.math | nodes.math_block) -> None:
    """Write a formula as MathML, which browsers draw by themselves: no script is fetched from anywhere."""
    block = isinstance(node, nodes.math_block)
    try:
        formula = tex2mathml(node.astext(), as_block=block)
    except MathError as error:
        logging.getLogger(__name__).warning("formula %r: %s", node.astext(), error, location=node)
        raise nodes.SkipNode from error
    translator.body.append(f'<div class="formula">{formula}</div>' if block else formula)
    raise nodes.SkipNode


def escape_bars(_app: Any, _what: str, _name: str, _value: Any, _options: Any, lines: list[str]) -> None:
    """Let a bar in a docstring be a bar."""
    lines[:] = [without_substitutions(line) for line in lines]


def without_substitutions(text: str) -> str:
    """Escape bars, as in ``|w|``, outside code: Sphinx would look for a substitution."""
    parts = text.split("``")
    parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
    return "``".join(parts)


def load(dotted: str) -> Any:
    """The object of a dotted name; None where there is none."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:count]))
        except ImportError:
            continue
        for part in parts[count:]:
            value = getattr(value, part, None)
        return value
    return None


def setup(app: Any) -> None:
    """Connect the steps above to Sphinx."""
    app.add_html_math_renderer("mathml", (math_as_text, None), (math_as_text, None))
    app.connect("builder-inited", write_api_pages)
    app.connect("builder-inited", write_measured_pages)
    app.connect("builder-inited", copy_notebooks)
    app.connect("source-read", lead_to_built_pages)
    app.connect("autodoc-process-docstring", escape_bars)
    app.connect("missing-reference", find_where_defined)
