"""Fixtures: a headless Chromium, and pages opened in it from disk."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Start Chromium: the system's, or the one that playwright installed."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="the page's browser tests need playwright")
    with sync_api.sync_playwright() as playwright:
        found = os.environ.get("LLMRANK_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
        found = found or playwright.chromium.executable_path
        if not Path(found).is_file():
            pytest.skip(
                "the page's browser tests need Chromium: apt-get install chromium, or playwright install chromium"
            )
        # In containers there are no user namespaces, which the sandbox needs.
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """An opened page, with its complaints and requests; a good page has none."""

    def __init__(self, context: Any, path: Path) -> None:
        self.page = context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.settle()
        # The first request is for the page's own file; data: and blob: addresses need no network.
        self.outside = lambda: [url for url in self.requests[1:] if not url.startswith(("data:", "blob:"))]

    def number(self, selector: str) -> int:
        """Return the number that an element shows."""
        return int(self.page.inner_text(selector).replace(",", "").replace("\N{MINUS SIGN}", ""))

    def until(self, expression: str, seconds: float = 20) -> None:
        """Wait until an expression is true; playwright's own way evaluates strings, which the page's policy forbids."""
        held = self.page.evaluate(
            f"""until => new Promise(done => {{
              const look = () => {{
                if ({expression}) done(true);
                else if (Date.now() > until) done(false);
                else setTimeout(look, 20);
              }};
              look();
            }})""",
            1000 * (time.time() + seconds),
        )
        assert held, f"after {seconds} s this was still not true: {expression}"

    def amount(self, percent: int) -> None:
        """Move the slider as a pointer would."""
        self.page.evaluate(
            "value => { const e = document.getElementById('amount'); e.value = value; "
            "e.dispatchEvent(new Event('input', { bubbles: true })); }",
            percent,
        )

    def settle(self) -> None:
        """Wait until the charts are drawn."""
        self.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


@pytest.fixture
def visit(chromium: Any) -> Iterator[Callable[..., Visit]]:
    """Open pages; at the end no page may have complained, or requested anything from outside."""
    contexts, visits = [], []

    def opened(path: Path, **options: Any) -> Visit:
        settings = {"viewport": {"width": 1280, "height": 800}, "offline": True, "accept_downloads": True, **options}
        contexts.append(chromium.new_context(**settings))
        visits.append(Visit(contexts[-1], path))
        return visits[-1]

    yield opened
    try:
        for each in visits:
            assert not each.complaints
            assert not each.outside()
    finally:
        for context in contexts:
            context.close()
