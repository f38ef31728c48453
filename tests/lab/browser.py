# Chromium is started on the node, so that it sees what a browser there would; it is driven over a pipe, which no
# network namespace can hold up.

"""A headless browser on a node."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from lab import parts
from lab.netns import Netns


@contextmanager
def browser(netns: Netns, directory: Path) -> Iterator[Browser]:
    """A browser in ``netns``; ``directory`` is for a file that starts it."""
    start = directory / "chromium"
    start.write_text(f'#!/bin/sh\nexec nsenter --net={netns.path} {parts.system("chromium-headless-shell")} "$@"\n')
    start.chmod(0o755)
    with sync_playwright() as playwright:
        # the tests run as root, which Chromium's sandbox refuses
        opened = playwright.chromium.launch(executable_path=str(start), args=["--no-sandbox"], timeout=60_000)
        try:
            yield opened
        finally:
            opened.close()


class Watched:
    """A page, and what went wrong on it: console errors, failed requests, requests to other hosts."""

    def __init__(self, page: Page, host: str) -> None:
        self.page = page
        self.errors: list[str] = []
        self.elsewhere: list[str] = []
        page.on("console", lambda said: self.errors.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("requestfailed", lambda request: self.errors.append(f"{request.url} failed: {request.failure}"))
        page.on("request", lambda request: None if f"//{host}" in request.url else self.elsewhere.append(request.url))
