"""The examples of the README, in order and in one namespace as a reader would type them, on a tiny model.

Its recipe and the kinds that CONTRIBUTING shows are tried too. A block after `<!-- not run: reason -->` is not run, one after `<!-- needs: module -->` only where that is installed.
What they name of roadint must exist all the same.
"""

import ast
import importlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

import roadint
from roadint import Recipe, RoadIntervention, RoadModel
from roadint.grammar import position_kinds
from roadint.interventions import registry
from tests.helpers import HALVES, SIZES, scaled

README = Path(__file__).parents[1] / "README.md"
SAID = {"instruction": "What is 2 + 2?", "output": "4"}
BLOCK = re.compile(r"(?:<!-- (not run|needs): ([^>]+) -->\n)?```python\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Block:
    line: int
    mark: str | None
    reason: str | None
    source: str

    def __str__(self) -> str:
        return f"line {self.line}"

    def compiled(self) -> Any:
        """With the README's own line numbers."""
        return compile("\n" * (self.line - 1) + self.source, str(README), "exec")

    def runs(self) -> bool:
        return self.mark is None or (
            self.mark == "needs" and find_spec(str(self.reason)) is not None
        )


def blocks() -> Iterator[Block]:
    text = README.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        yield Block(text.count("\n", 0, match.start(3)) + 1, *match.groups())


BLOCKS = list(blocks())


def test_most_blocks_run() -> None:
    assert len(BLOCKS) == README.read_text(encoding="utf-8").count("```python")
    assert sum(block.mark == "not run" for block in BLOCKS) <= 1
    assert all(len(line) <= 100 for block in BLOCKS for line in block.source.splitlines())


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_what_a_block_names_exists(block: Block) -> None:
    block.compiled()
    for node in ast.walk(ast.parse(block.source)):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("roadint"):
            if block.runs():
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "roadint":
                assert node.attr in roadint.__all__
            elif node.value.id == "road":
                assert hasattr(RoadModel, node.attr)


def test_its_recipe_is_one(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "recipe.yaml").write_text(example, encoding="utf-8")
    recipe = Recipe.load(tmp_path / "recipe.yaml")
    assert recipe == Recipe.load(recipe, {"lr": 7e-3, "edit.layers": [6, 9], "rows": 1000})
    assert recipe.names() == ["german", "english"]


def test_the_kinds_that_contributing_shows_train_and_load(
    llama: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "_KINDS", registry.kinds())
    monkeypatch.setattr(position_kinds, "_KINDS", dict(position_kinds.position_kinds()))
    text = (README.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    namespace: dict[str, Any] = {**vars(position_kinds), "__name__": "contributing"}
    for source in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(source, namespace)

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


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "demos/measured.md"])
def test_what_the_prose_names_exists(page: str) -> None:
    text = (README.parent / page).read_text(encoding="utf-8")
    for name in sorted(set(re.findall(r"`(roadint(?:\.\w+)+)", text))):
        resolve_name(name)


@pytest.fixture
def tiny(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> Any:
    """In the place of the models that are loaded: 18 layers, as Gemma 3 270M has; trainings and answers are short."""
    config = Gemma3TextConfig(
        **{**SIZES, "num_hidden_layers": 18}, num_key_value_heads=1, head_dim=8
    )
    torch.manual_seed(0)
    model = scaled(Gemma3ForCausalLM(config)).requires_grad_(True)
    train, answer = roadint.train, RoadModel.answer

    def shortly(*args: Any, **settings: Any) -> Any:
        return train(
            *args, **{**settings, "rows": 4, "epochs": 1, "max_length": 1024, "quiet": True}
        )

    def briefly(*args: Any, **settings: Any) -> Any:
        return answer(*args, **{**settings, "max_new_tokens": 2})

    monkeypatch.setattr(roadint, "load", lambda name: (model, tokenizer))
    monkeypatch.setattr(roadint, "train", shortly)
    monkeypatch.setattr(RoadModel, "answer", briefly)
    return model


@pytest.fixture
def folder(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the examples name, in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for layer, path in ((3, "you/french"), (4, "runs/third")):
        edit = RoadIntervention(layer=layer, subspaces={"french": "[0, d/2)"})
        RoadModel(tiny, edit).save_pretrained(path)
    halves = {"german": "[0, d/2)", "english": "[d/2, d)"}
    edit = RoadIntervention(layer=6, position="last(5)", subspaces=halves)
    RoadModel(tiny, edit).save_pretrained("runs/german-english")
    adapter = roadint.add_linear_road(tiny, name="french")
    adapter.save_pretrained("runs/french")
    Path("math.jsonl").write_text("\n".join([json.dumps(SAID)] * 8), encoding="utf-8")
    return tmp_path


def test_the_examples_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, Any] = {"__name__": "readme"}
    for block in BLOCKS:
        if block.runs():
            exec(block.compiled(), namespace)
    assert (
        "«[layer 6, 9]" in capsys.readouterr().out
    )  # what describe says of the trained checkpoint
