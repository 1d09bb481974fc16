"""The model card: what somebody who finds a checkpoint on the hub has to know."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import roadint
from roadint.checkpoint.reading import read
from roadint.demo.service import SHIPPED
from roadint.model.card import model_card
from tests.helpers import call


def test_it_tells_of_the_training_the_edits_and_the_figures() -> None:
    report = {
        "nll": {"none": {"cross": 4.0}, "german": {"cross": 3.625}},
        "shares": {
            "none": {"success": 0.5, "on_topic": 0.875},
            "german": {"success": None, "on_topic": 1.0},
        },
    }
    card = model_card("me/it", read(SHIPPED).config, report, pictured=True)
    header = yaml.safe_load(card.split("---")[1])
    assert header == {
        "library_name": "roadint",
        "tags": ["roadint", "road", "representation-finetuning"],
    }
    for told in (
        "layer 6, block_output, position last(5) (prompt): road_1, basis random; `german` [0, 320)",
        "| german | bundled:german | 240 |",
        "trained numbers 1280; steps 150; learning rate 0.007; epochs 2.5; seed 1",
        "| `none` | 50% | 88% | 4.00 |",
        "| `german` | – | 100% | 3.62 |",
        "compose=[None, 'german', 'english', 'all']",
        "](angles.png)",
    ):
        assert told in card, told


def test_its_base_model_is_linked_where_the_hub_has_it() -> None:
    config = json.loads(json.dumps(read(SHIPPED).config))
    config["base_model"]["id"] = "google/gemma-3-270m"
    assert "base_model: google/gemma-3-270m\n" in model_card("me/it", config)
    config["training"] = {}
    assert "## Training" not in model_card("me/it", config)


def test_what_is_no_id_of_the_hub_is_not_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((SHIPPED / "road.json").read_text())
    for edit in config["interventions"]:  # the first checkpoints have neither
        edit.pop("kind")
        edit.pop("variant")
    (tmp_path / "runs" / "plain").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for base, linked in (("runs/plain", False), ("runs/plain/v1", False), ("google/gemma", True)):
        config["base_model"]["id"] = base
        assert (f"base_model: {base}" in model_card("me/it", config)) is linked


def test_a_report_of_evaluate_and_an_adapter(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    road = roadint.add_linear_road(llama, name="math")
    rows = [{"instruction": "What is 2 + 2?", "output": "4"}]
    report = roadint.evaluate(
        road, tokenizer, {"sums": rows}, ["What is 2?"], max_new_tokens=2, quiet=True
    )
    road.save_pretrained(tmp_path)
    card = model_card("me/it", read(tmp_path).config, asdict(report))
    assert f"- adapter `math`: road_1 on {len(road.adapters['math'].layout.paths)} layers" in card
    assert "| `math` |" in card


def test_push_uploads_a_folder_with_a_picture(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploaded: dict[str, bytes] = {}

    class Api:
        def __init__(self, token: Any = None) -> None:
            pass

        def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> Any:
            if repo_id == "me/bad name":
                raise ConnectionError("no such name")
            return type("Url", (), {"repo_id": repo_id})

        def whoami(self) -> Any:
            return {"name": "me"}

        def upload_folder(self, folder_path: str, **_: Any) -> Any:
            uploaded.update({path.name: path.read_bytes() for path in Path(folder_path).iterdir()})
            return type("Commit", (), {"commit_url": "hub://it"})

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    code, out, _ = call(capsys, monkeypatch, "push", str(SHIPPED), "me/it")
    assert (code, "hub://it" in out) == (0, True)
    assert sorted(uploaded) == ["README.md", "angles.png", "road.json", "road.safetensors"]
    assert uploaded["road.json"] == (SHIPPED / "road.json").read_bytes()
    assert uploaded["angles.png"].startswith(b"\x89PNG")
    (tmp_path / "report.json").write_text("{}")
    for wrong in (
        ["push", str(SHIPPED), "bad name"],
        ["push", str(SHIPPED), "me/it", "--report", str(tmp_path / "report.json")],
    ):
        code, _, errors = call(capsys, monkeypatch, *wrong)
        assert (code, len(errors.splitlines())) == (2, 1)
