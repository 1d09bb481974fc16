"""The examples of the documentation, each page in order and in one namespace as a reader would type them."""

import ast
import importlib
import re
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import roadint
from roadint import Recipe, RoadModel
from roadint.grammar import position_kinds
from roadint.interventions import registry
from tests.docs.conftest import HALVES, SAID
from tests.docs.pages import ARCHITECTURE, PAGES, README, ROOT, VISION, Block, blocks_of, name_of

CODE = [block for page in PAGES for block in blocks_of(page, "python")]
RUN = [page for page in PAGES if page not in (ARCHITECTURE, VISION) and blocks_of(page, "python")]


def test_nearly_all_blocks_run() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert len(CODE) == text.count("```python")
    assert sum(block.mark == "not run" for block in CODE) <= 3
    assert all(len(line) <= 100 for block in CODE for line in block.source.splitlines())


def test_the_readme_is_short() -> None:
    assert len(README.read_bytes()) <= 9_000


@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_the_examples_run(page: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, Any] = {"__name__": "page"}
    for block in blocks_of(page, "python"):
        if block.runs():
            exec(block.compiled(), namespace)
    printed = capsys.readouterr().out
    if page.name == "positions.md":
        assert printed.count("«[layer 6]") == 5
    if page.name == "rotations.md":
        assert printed == "tensor([0., 1., 3., 4.])\ntensor([1., 0., 3., 4.])\n"


@pytest.mark.parametrize("block", CODE, ids=str)
def test_what_a_block_names_exists(block: Block) -> None:
    for node in ast.walk(ast.parse(block.source)):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("roadint"):
            if block.runs():
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "roadint":
                assert node.attr in roadint.__all__ or hasattr(roadint, node.attr)
            elif node.value.id == "road":
                assert hasattr(RoadModel, node.attr)


def test_the_recipe_is_one(tmp_path: Path) -> None:
    (block,) = blocks_of(ROOT / "docs" / "guides" / "train.md", "yaml")
    (tmp_path / "recipe.yaml").write_text(block.source, encoding="utf-8")
    recipe = Recipe.load(tmp_path / "recipe.yaml")
    assert recipe == Recipe.load(recipe, {"lr": 7e-3, "edit.layers": [6, 9], "rows": 1000})
    assert recipe.names() == ["german", "english"]


def test_the_places_are_settings(tmp_path: Path) -> None:
    (block,) = blocks_of(ROOT / "docs" / "concepts" / "positions.md", "yaml")
    model = "model: {name: gemma-3-270m}\n"
    (tmp_path / "recipe.yaml").write_text(model + block.source, encoding="utf-8")
    assert Recipe.load(tmp_path / "recipe.yaml").edit.places["list"].layers == [12, 15]


def test_every_preset_is_told() -> None:
    text = (ROOT / "docs" / "guides" / "train.md").read_text(encoding="utf-8")
    presets = (ROOT / "roadint" / "recipes" / "presets").glob("*.yaml")
    assert not [path.stem for path in presets if f"`{path.stem}`" not in text]


def test_the_kinds_that_the_architecture_shows_train_and_load(
    llama: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "_KINDS", registry.kinds())
    monkeypatch.setattr(position_kinds, "_KINDS", dict(position_kinds.position_kinds()))
    namespace: dict[str, Any] = {**vars(position_kinds), "__name__": "architecture"}
    for block in blocks_of(ARCHITECTURE, "python"):
        exec(block.compiled(), namespace)

    settings = {"kind": "gain", "start": 0.5, "position": "every(3)", "subspaces": HALVES}
    settings |= {"layers": [1], "lrs": {}, "strengths": {}, "companions": {}}
    recipe = Recipe.load("composition", {**settings, "eos": [], "template": "plain"})
    road = recipe.on(llama)
    roadint.train(road, tokenizer, {"a": [SAID] * 8}, recipe, lrs={"a": 1e-3}, quiet=True)
    road.save_pretrained(tmp_path)
    loaded = RoadModel.from_pretrained(llama, tmp_path).interventions[0]
    assert (loaded.kind, loaded.start, str(loaded.position)) == ("gain", 0.5, "every(3)")
    assert torch.equal(loaded.gains, road.interventions[0].gains)
    a, b = loaded.gains.detach().split(len(loaded.gains) // 2)
    assert bool((a != 0.5).all())
    assert torch.equal(b, torch.full_like(b, 0.5))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_the_prose_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in sorted(set(re.findall(r"(?:`|::: )(roadint(?:\.\w+)+)", text))):
        resolve_name(name)


def test_every_public_name_has_a_place_in_the_reference() -> None:
    pages = (ROOT / "docs" / "reference").glob("*.md")
    told = set(re.findall(r"::: roadint\.(\w+)", "".join(page.read_text() for page in pages)))
    assert told >= set(roadint.__all__) - {"__version__"}
