"""The folders that `roadint merge`, `export` and `import` write to."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from roadint import RoadError, RoadModel
from roadint.cli.checks import check_folder
from roadint.cli.export import export
from roadint.cli.merge import merge
from roadint.model import pretrained


def test_folders_that_can_not_be_made_are_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for out in (
        tmp_path / "file",
        tmp_path / "file" / "below",
        Path("x" * 5000),
        Path("a\0b"),
        Path("/proc/nope/x"),
    ):
        with pytest.raises(RoadError, match=r"--out .*(is a file|can't be a folder)"):
            check_folder("--out", out, new=True)
    with pytest.raises(RoadError, match="is not empty"):
        check_folder("--out", tmp_path, new=True)
    check_folder("--out", tmp_path / "deep" / "new", new=True)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_merge_that_fails_leaves_nothing(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    road = RoadModel(model)
    road.add_adapter("a", targets=["q_proj"])
    road.save_pretrained(tmp_path / "run")

    def full(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(PreTrainedTokenizerBase, "save_pretrained", full)
        merge(str(tmp_path / "run"), tmp_path / "plain")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    merge(str(tmp_path / "run"), tmp_path / "plain")
    AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    export(str(tmp_path / "run"), tmp_path / "peft")
    assert sorted(path.name for path in (tmp_path / "peft").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "roadint.json",
    ]


def test_merged_weights_have_the_base_models_dtype_whatever_the_cpu_computes_in(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "base")
    road = RoadModel(AutoModelForCausalLM.from_pretrained(tmp_path / "base"))
    road.add_adapter("a", targets=["q_proj"])
    with torch.no_grad():
        road.adapters["a"].theta.fill_(0.3)
    road.save_pretrained(tmp_path / "run")
    for supported in (True, False):
        monkeypatch.setattr(pretrained, "_computes_in", lambda dtype, here=supported: here)
        merge(str(tmp_path / "run"), tmp_path / f"merged-{supported}")
    here, there = (
        AutoModelForCausalLM.from_pretrained(tmp_path / f"merged-{each}") for each in (True, False)
    )
    assert here.dtype == there.dtype == torch.bfloat16
    for name, value in here.state_dict().items():
        assert torch.equal(value, there.state_dict()[name]), name
    merge(str(tmp_path / "run"), tmp_path / "asked", dtype="float32")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "asked").dtype == torch.float32
