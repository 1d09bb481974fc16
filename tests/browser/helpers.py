"""What the tests of the app in a browser share beside their fixtures."""

import os
from pathlib import Path

from playwright.sync_api import Page

PICTURES = Path(os.environ.get("ROADINT_PICTURES", "build/pictures"))


def picture(page: Page, name: str) -> None:
    """Keep a picture of the whole page."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"{name}.png", full_page=True)
