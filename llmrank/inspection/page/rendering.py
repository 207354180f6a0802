"""The page of an inspection: one HTML file that works from disk, without a network."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from graphs.io.replacement import replace_file
from llmrank.evaluation.token_losses import LossChanges
from llmrank.inspection.inspect_model import Inspection
from llmrank.inspection.meaning.meanings import Meanings
from llmrank.inspection.page.page_data import payload

__all__ = ["SCRIPTS", "render", "write_page"]

# The parts of the page's script, in order. Code that a part runs while the page loads may use only the parts before it.
SCRIPTS = (
    *("model.js", "meanings.js", "search.js", "chart_parts.js", "charts.js", "state.js"),
    *("panels.js", "meaning_panels.js", "inspect.js"),
)


def write_page(
    inspection: Inspection,
    path: str | os.PathLike[str],
    meanings: Meanings | None = None,
    changes: LossChanges | None = None,
) -> Path:
    """Write an inspection as a page to explore in a browser.

    Parameters
    ----------
    inspection : Inspection
    path : path-like
        File to write. It is replaced on success, and left as it is on failure.
    meanings : Meanings, optional
        The meanings of all neurons, to show and to search.
    changes : LossChanges, optional
        What the masks of the inspection change in the predictions of its calibration text.

    Raises
    ------
    GraphError
        The directory does not exist, the path is no regular file, or the weights or their sums hold NaN or Inf.
    OSError
        The system cannot write the file.

    Examples
    --------
    >>> import tempfile
    >>> import torch
    >>> from llmrank.inspection.inspect_model import inspect_model
    >>> from llmrank.pipeline import IsolatedFFNPipeline
    >>> from llmrank.score import ActivationScorer
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    >>> pipeline = IsolatedFFNPipeline(model, None, calibration=torch.rand(8, 4))
    >>> inspection = inspect_model(pipeline, {"activation": ActivationScorer()}, "activation")
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     page = write_page(inspection, Path(directory) / "index.html")
    ...     page.name, page.stat().st_size < 170_000
    ('index.html', True)
    """
    target = Path(path)
    with replace_file(target) as partial:
        partial.write_text(render(payload(inspection, meanings, changes)), encoding="utf-8", newline="\n")
    return target


def render(content: Mapping[str, Any]) -> str:
    r"""Return the HTML of the page that shows a payload.

    Names from the model may hold any characters: the data is JSON without ``<``, and the page shows names as text. Its content
    security policy permits only its own scripts and style sheet, by their hashes, and no connections.

    Parameters
    ----------
    content : mapping
        The result of :func:`llmrank.inspection.page.page_data.payload`.

    Examples
    --------
    >>> page = render({"source": "</script> & co"})
    >>> "<title>&lt;/script&gt; &amp; co</title>" in page, '{"source":"\\u003c/script> & co"}' in page
    (True, True)
    """
    theme = _template("scripts/theme.js")
    script = "\n".join(["(() => {", '"use strict";', *(_template(f"scripts/{name}") for name in SCRIPTS), "})();"])
    style = f"\n{_template('inspect.css')}\n"
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {_hash(theme)} {_hash(script)}",
            f"style-src {_hash(style)}",
            # The heat map is an image that the page draws itself.
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    return Template(_template("inspect.html")).substitute(
        theme=theme,
        script=script,
        style=style,
        policy=policy,
        title=html.escape(content["source"]),
        data=json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    )


def _hash(text: str) -> str:
    """Return the expression that permits a script or style sheet in a content security policy, by its hash."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"


def _template(name: str) -> str:
    return (files("llmrank.inspection.page") / "templates" / name).read_text(encoding="utf-8").strip()
