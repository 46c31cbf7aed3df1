"""A real browser, headless and without a network, for pages that medvl writes."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SCREEN = {"width": 1280, "height": 900}


@contextmanager
def opened(path: Path) -> Iterator[tuple[Any, list[str]]]:
    """The page in Chromium, and what it complained about or asked for; skips where there is no Chromium."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no Chromium; install Debian's package chromium (as root: make browser)")
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright; pip install medvl[dev]")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium)
        context = browser.new_context(viewport=SCREEN, offline=True)
        page, noticed = context.new_page(), []
        page.on("console", lambda message: noticed.append(message.text))
        page.on("pageerror", lambda error: noticed.append(str(error)))
        page.on("request", lambda request: noticed.append(request.url) if request.url[:5] not in _OWN else None)
        page.goto(path.resolve().as_uri())
        yield page, noticed
        browser.close()


_OWN = ("file:", "data:")


def n_pages(pdf: bytes) -> int:
    """Pages of a PDF that Chromium printed."""
    return len(re.findall(rb"/Type\s*/Page\b(?!s)", pdf))
