"""The explorer: an inspection as one HTML page that works from disk, with no network.

The page draws with plotly.js, which it carries within.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from graphs.io.files import replacing
from llmrank.errors import LLMRankError
from llmrank.inspection.inspection import Inspection
from llmrank.inspection.page_data import DATA_LIMIT, payload

__all__ = ["render", "write_page"]

# In this order: what computes, what draws, what is looked at, what shows it, and what listens.
SCRIPTS = ("exact.js", "plots.js", "state.js", "panels.js", "inspect.js")


def write_page(
    inspection: Inspection,
    path: str | os.PathLike[str],
    *,
    top_edges: int = 3,
    data_limit: int = DATA_LIMIT,
) -> Path:
    """Write an inspection as a page to explore.

    Parameters
    ----------
    inspection : Inspection
    path : path-like
        File to write; replaced whole on success, untouched on failure.
    top_edges, data_limit
        As for :func:`llmrank.inspection.page_data.payload`.

    Returns
    -------
    Path
        Of the page.

    Raises
    ------
    GraphError
        The directory is not there, or the path is one.
    LLMRankError
        plotly is not installed; or as for the payload.

    Examples
    --------
    >>> import tempfile
    >>> import torch
    >>> from llmrank.inspection.inspection import inspect_model
    >>> from llmrank.pipeline import IsolatedFFNPipeline
    >>> from llmrank.score import ActivationScorer
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    >>> pipeline = IsolatedFFNPipeline(model, None, calibration=torch.rand(8, 4))
    >>> inspection = inspect_model(pipeline, {"activation": ActivationScorer()}, "activation")
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     page = write_page(inspection, Path(directory) / "index.html")
    ...     page.name, page.stat().st_size < 6_000_000
    ('index.html', True)
    """
    target = Path(path)
    # Before the minutes that the edges of a large model can take.
    _plotly()
    with replacing(target) as partial:
        content = payload(inspection, top_edges=top_edges, data_limit=data_limit)
        partial.write_text(render(content), encoding="utf-8", newline="\n")
    return target


def render(content: Mapping[str, Any]) -> str:
    r"""The page that shows a payload.

    Names may hold anything: they travel as JSON without ``<``, and the page writes them as text. Scripts run only if
    their hash is in the page's content security policy, which permits no connection either.

    Parameters
    ----------
    content : mapping
        As :func:`llmrank.inspection.page_data.payload` makes it.

    Returns
    -------
    str
        HTML, to be encoded in UTF-8.

    Raises
    ------
    LLMRankError
        plotly is not installed.

    Examples
    --------
    >>> page = render({"source": "</script> & co"})
    >>> "<title>&lt;/script&gt; &amp; co</title>" in page, '{"source":"\\u003c/script> & co"}' in page
    (True, True)
    """
    scripts = {
        "theme": _script(_template("theme.js")),
        "plotly": _script(_plotly()),
        "script": _script("\n".join(["(() => {", '"use strict";', *map(_template, SCRIPTS), "})();"])),
    }
    hashes = " ".join(f"'sha256-{_digest(text)}'" for text in scripts.values())
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {hashes}",
            # plotly.js sets styles as it draws.
            "style-src 'unsafe-inline'",
            "img-src data: blob:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    return Template(_template("inspect.html")).substitute(
        scripts,
        policy=policy,
        title=html.escape(content["source"]),
        style=_template("inspect.css"),
        data=json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    )


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


def _template(name: str) -> str:
    return (files("llmrank.inspection") / "templates" / name).read_text(encoding="utf-8").strip()


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise LLMRankError("the page draws with plotly, which is not installed; pip install plotly") from error
    return str(get_plotlyjs())


def _script(text: str) -> str:
    """A script as it may stand in HTML: what would end the element is spelt otherwise, as JavaScript lets strings be."""
    text = re.sub(r"\r\n?", "\n", text)
    return re.sub(r"<(?=!--|/script)", r"\\x3c", text, flags=re.IGNORECASE)
