"""The pages of the documentation, and their blocks of code."""

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
README, ARCHITECTURE = ROOT / "README.md", ROOT / "docs" / "architecture.md"
VISION = ROOT / "docs" / "guides" / "vision.md"  # needs a model of its own: test_vision_page
PAGES = sorted(
    path
    for path in [README, ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    if path.name != "changes.md"
)
_BLOCK = re.compile(
    r"(?:^<!-- (not run|needs): ([^>]+) -->\n)?^( *)```(\w+)\n(.*?)^ *```", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    """A block of code of a page.

    After `<!-- not run: reason -->` one is not run; after `<!-- needs: module -->` only where that
    is installed. What it names of roadint must exist all the same.
    """

    page: Path
    line: int
    mark: str | None
    reason: str | None
    language: str
    source: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}, line {self.line}"

    def compiled(self) -> Any:
        """With the page's own line numbers."""
        return compile("\n" * (self.line - 1) + self.source, str(self.page), "exec")

    def runs(self) -> bool:
        return self.mark is None or (
            self.mark == "needs" and find_spec(str(self.reason)) is not None
        )


def blocks_of(page: Path, language: str) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        mark, reason, indent, name, source = match.groups()
        if name == language:
            line = text.count("\n", 0, match.start(5)) + 1
            source = "".join(part.removeprefix(indent) for part in source.splitlines(True))
            found.append(Block(page, line, mark, reason, name, source))
    return found


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))
