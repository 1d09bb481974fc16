"""The examples of docs/guides/vision.md, in order and in one namespace, on a tiny LLaVA."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from roadint.data.image_text.conversations import load_conversations
from tests.vision import image, save_llava

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "vision.md"
TEXT = PAGE.read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the examples name, in the working directory."""
    monkeypatch.chdir(tmp_path)
    save_llava(tmp_path / "llava-hf" / "llava-1.5-7b-hf")
    for name in ("cat.png", "a.png", "b.png", "coco/1.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image(1).save(tmp_path / name)
    return tmp_path


def test_its_rows_are_read(folder: Path) -> None:
    (example,) = re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)
    (folder / "rows.json").write_text(example)
    counts = [len(row.images) for row in load_conversations(folder / "rows.json")]
    assert counts == [1, 2, 0]
    assert len(json.loads(example)) == 3


def test_the_examples_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import roadint
    from roadint import RoadIntervention

    def shallow(*, layer: int, **settings: Any) -> RoadIntervention:
        return RoadIntervention(layer=min(layer, 1), **settings)

    monkeypatch.setattr(roadint, "RoadIntervention", shallow)
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == 4
    assert all(len(line) <= 100 for block in blocks for line in block.splitlines())
    namespace: dict[str, Any] = {"__name__": "page"}
    for block in blocks:
        exec(block, namespace)
    inputs, road = namespace["inputs"], namespace["road"]
    assert road.names == ["colours"]
    assert bool((road.adapters["colours"].theta != 0).any())
    assert len(namespace["tokens"]) == len(inputs["input_ids"]) == 2
    with torch.no_grad():
        plain = namespace["model"](**inputs).logits
    different = (namespace["logits"] - plain).abs().amax(dim=(1, 2)) > 0
    assert different.tolist() == [False, False]  # an edit that never trained is the identity
