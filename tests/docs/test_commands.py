"""The commands of the documentation: their names, options and targets exist. And links of what is no page of the site."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from roadint.cli.main import app
from tests.docs.pages import PAGES, ROOT, Block, blocks_of, name_of

LINES = [block for page in PAGES for block in blocks_of(page, "bash")]
GROUP = typer.main.get_command(app)


def commands(block: Block) -> Iterator[list[str]]:
    """The words of each command of roadint in a block, without its name."""
    text = re.sub(r"\s+#.*", "", block.source.replace("\\\n", " "))
    for match in re.finditer(r"(?:^|;|&&|\bdo|-m)\s*roadint ([^;&\n]*)", text, re.MULTILINE):
        yield shlex.split(match.group(1))


def check(words: list[str]) -> None:
    command: Any = GROUP
    for word in words:
        commands = getattr(command, "commands", None)
        if commands is not None and not word.startswith("-"):
            assert word in commands, f"no command {word}"
            command = commands[word]
    known = {name for each in command.params for name in [*each.opts, *each.secondary_opts]}
    known |= {"--help"}
    before = words[: words.index("--")] if "--" in words else words
    options = {word.partition("=")[0] for word in before if re.match(r"--\w", word)}
    assert options <= known, f"{shlex.join(words)}: no option {sorted(options - known)}"


@pytest.mark.parametrize("block", LINES, ids=str)
def test_they_exist(block: Block) -> None:
    for words in commands(block):
        check(words)


def test_they_are_found() -> None:
    assert sum(len(list(commands(block))) for block in LINES) > 60
    with pytest.raises(AssertionError, match="no option"):
        check(["bench", "learn", "glue", "--no-such-option", "1"])
    with pytest.raises(AssertionError, match="no command"):
        check(["trane", "composition"])


def test_targets_of_make_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w.$()/-]+):", makefile, re.MULTILINE))
    for block in LINES:
        for words in re.findall(r"^make ([a-z -]+)", block.source, re.MULTILINE):
            assert set(words.split()) <= targets, words


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_outside_of_the_site_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]*)(?:#[^)]*)?\)", text):
        assert (ROOT / target).exists(), target


def test_pages_have_no_very_long_paths_of_a_machine() -> None:
    for page in PAGES:
        assert not re.search(r"(?<!\w)/(?:tmp|home|work|root)/", page.read_text()), name_of(page)


def test_pictures_exist() -> None:
    for page in PAGES:
        for target in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            assert (Path(page).parent / target).is_file(), f"{name_of(page)}: {target}"
