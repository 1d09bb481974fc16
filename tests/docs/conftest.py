"""What the pages' examples find: a tiny model in the place of those that they load, and files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

import roadint
from roadint import RoadIntervention, RoadModel
from tests.helpers import HALVES, SIZES, scaled

SAID = {"instruction": "What is 2 + 2?", "output": "4"}


@pytest.fixture
def tiny(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model of 18 layers, as Gemma 3 270M has; trainings and answers are short."""
    config = Gemma3TextConfig(
        **{**SIZES, "num_hidden_layers": 18}, num_key_value_heads=1, head_dim=8
    )
    torch.manual_seed(0)
    model = scaled(Gemma3ForCausalLM(config)).requires_grad_(True)
    train, answer, evaluate = roadint.train, RoadModel.answer, roadint.evaluate

    def shortly(*args: Any, **settings: Any) -> Any:
        return train(
            *args, **{**settings, "rows": 4, "epochs": 1, "max_length": 1024, "quiet": True}
        )

    def briefly(*args: Any, **settings: Any) -> Any:
        return answer(*args, **{**settings, "max_new_tokens": 2})

    def roughly(*args: Any, **settings: Any) -> Any:
        return evaluate(*args, **{**settings, "max_new_tokens": 2, "quiet": True})

    monkeypatch.setattr(roadint, "load", lambda name: (model, tokenizer))
    monkeypatch.setattr(roadint, "train", shortly)
    monkeypatch.setattr(roadint, "evaluate", roughly)
    monkeypatch.setattr(RoadModel, "answer", briefly)
    return model


@pytest.fixture
def folder(
    tiny: Any, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The files that the examples name, in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tiny.save_pretrained("you/model")
    tokenizer.save_pretrained("you/model")
    for layer, path in ((3, "you/french"), (4, "runs/third")):
        edit = RoadIntervention(layer=layer, subspaces={"french": "[0, d/2)"})
        RoadModel(tiny, edit).save_pretrained(path)
    halves = {"german": "[0, d/2)", "english": "[d/2, d)"}
    edit = RoadIntervention(layer=6, position="last(5)", subspaces=halves)
    for path in ("german-english", "runs/german-english"):
        RoadModel(tiny, edit).save_pretrained(path)
    adapter = roadint.add_linear_road(tiny, name="french")
    adapter.template = "alpaca"
    adapter.save_pretrained("runs/french")
    Path("math.jsonl").write_text("\n".join([json.dumps(SAID)] * 8), encoding="utf-8")
    return tmp_path


__all__ = ["HALVES", "SAID"]
