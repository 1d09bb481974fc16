"""The app on the checkpoint that ships with roadint and the offline model, in Debian's Chromium (or Playwright's own)."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from playwright.sync_api import Browser, Page, sync_playwright

from roadint.demo.app import launch
from roadint.demo.service import SHIPPED, Service

_QUIET = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
]


@pytest.fixture(scope="session")
def allowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that checkpoints may be opened from: a good one and a damaged one."""
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(SHIPPED, folder / "second")
    shutil.copytree(SHIPPED, folder / "damaged")
    tensors = folder / "damaged" / "road.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-20])
    return folder


@pytest.fixture(scope="session")
def address(allowed: Path) -> str:
    """Of the app, whose model is ready."""
    torch.set_num_threads(os.cpu_count() or 1)  # the tests of tiny models take one
    service = Service(folder=allowed)
    _, url, _ = launch(service, prevent_thread_lock=True, quiet=True)
    assert service.wait(), service.status
    return url


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path_of_chromium = next(
        (
            path
            for name in ("chromium", "chromium-browser", "google-chrome")
            if (path := shutil.which(name))
        ),
        None,
    )
    sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path_of_chromium, args=[*_QUIET, *sandbox]
        )
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser, address: str) -> Iterator[Any]:
    """(path="", **context arguments) → a page that complains, at the end, of everything in its console."""
    contexts, complaints = [], []

    def make(path: str = "", **arguments: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **arguments})
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        contexts.append(context)
        page = context.new_page()
        page.on(
            "console",
            lambda message: complaints.append(message.text) if message.type == "error" else None,
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(address + path)
        page.wait_for_selector("#compare:not([disabled])", timeout=60_000)
        return page

    yield make
    for context in contexts:
        context.close()
    assert not complaints, complaints
