"""Runs that are killed, at any place between two operations on files: they go on to the same result, or are done."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import roadint
from roadint import RoadError, RoadIntervention, RoadModel
from roadint.checkpoint.reading import read
from roadint.training import run_folder
from tests.helpers import build

DATA = {"a": [{"instruction": f"say {index}", "output": "abc"} for index in range(16)]}
SETTINGS: dict[str, Any] = {
    "epochs": 4, "lr": 5e-2, "template": "plain", "eos": [], "save_steps": 3, "max_length": 64, "quiet": True, "companions": {},
}  # fmt: skip
OPERATIONS = ("unlink", "rmdir", "rename", "replace", "mkdir", "remove")


def new_road() -> RoadModel:
    return RoadModel(
        build("llama"), RoadIntervention(layer=1, subspaces={"a": "[0, d/2)", "b": "[d/2, d)"})
    )


def run(tokenizer: Any, out: Path, *, resume: bool = False, **changes: Any) -> RoadModel:
    road = new_road()
    roadint.train(
        road,
        tokenizer,
        changes.pop("data", DATA),
        out=out,
        resume=resume,
        **{**SETTINGS, **changes},
    )
    return road


def result(out: Path) -> tuple[torch.Tensor, list[dict[str, Any]], dict[str, float]]:
    saved = read(out)
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return saved.tensors["0.theta"], log, saved.config["training"]["loss"]


def assert_same_result(out: Path, whole: Path) -> None:
    (theta, log, loss), (other_theta, other_log, other_loss) = result(out), result(whole)
    assert torch.equal(theta, other_theta)
    assert log == other_log
    assert loss == other_loss
    assert sorted(path.name for path in out.iterdir()) == [
        "log.jsonl",
        "road.json",
        "road.safetensors",
    ]


def killed(work: Callable[[], object], before: int) -> bool:
    """Do the work in a process that is killed before its operation on files of that number; whether it came so far."""
    pid = os.fork()
    if not pid:
        try:
            os.environ["PYTHONWARNINGS"] = "ignore"
            counted = [0]

            def counting(own: Callable[..., Any]) -> Callable[..., Any]:
                def operation(*args: Any, **kwargs: Any) -> Any:
                    counted[0] += 1
                    if counted[0] == before:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return own(*args, **kwargs)

                return operation

            for name in OPERATIONS:
                setattr(os, name, counting(getattr(os, name)))
            torch.save = counting(torch.save)
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert status == 0 or os.WIFSIGNALED(status), "the work failed by itself"
    return status != 0


@pytest.fixture(scope="module")
def whole(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    run(tokenizer, out)
    return out


def test_killed_before_any_operation_on_files_it_ends_at_the_same_result(
    whole: Path, tokenizer: Any, tmp_path: Path
) -> None:
    for place in range(1, 400, 5):  # all of them take two minutes
        out = tmp_path / str(place)
        if not killed(lambda out=out: run(tokenizer, out), place):
            break
        run(tokenizer, out, resume=True)
        assert_same_result(out, whole)
        shutil.rmtree(out)
    assert 40 < place < 400


@pytest.fixture
def ended(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose result is written and whose checkpoints are all there still."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "finish", lambda out: None)
        run(tokenizer, out)
    return out


@pytest.mark.parametrize(
    "gone", [[], ["run.json"], ["checkpoint-8"], ["checkpoint-8", "checkpoint-6/optimizer.pt"]]
)
def test_what_is_left_of_the_checkpoints_does_not_matter_once_the_result_is_there(
    ended: Path, whole: Path, tokenizer: Any, gone: list[str]
) -> None:
    for each in gone:
        path = ended / "checkpoints" / each
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    road = run(tokenizer, ended, resume=True)
    assert torch.equal(road.interventions[0].theta, result(whole)[0])
    assert road.training_summary["steps"] == 8
    assert_same_result(ended, whole)


def test_a_removal_that_was_cut_short_is_a_finished_run(
    ended: Path, whole: Path, tokenizer: Any
) -> None:
    (ended / "checkpoints" / "run.json").unlink()
    assert not run_folder.is_finished(ended)
    (ended / ".checkpoints.done").touch()  # as finish does first
    assert run_folder.is_finished(ended)
    run_folder.finish(ended)
    assert_same_result(ended, whole)


def test_every_file_of_a_checkpoint_is_needed_to_go_on(
    ended: Path, whole: Path, tokenizer: Any
) -> None:
    for name in ("road.json", "road.safetensors", "log.jsonl"):
        (ended / name).unlink()
    last, before = ended / "checkpoints" / "checkpoint-8", ended / "checkpoints" / "checkpoint-6"
    assert run_folder.is_whole(before)
    for file in (
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
        "road.safetensors",
        "log_state_0.pt",
    ):
        content = (before / file).read_bytes()
        for damaged in (None, content[: len(content) // 2], b""):
            (before / file).unlink() if damaged is None else (before / file).write_bytes(damaged)
            assert not run_folder.is_whole(before), file
            (before / file).write_bytes(content)
    (last / "optimizer.pt").unlink()
    run(tokenizer, ended, resume=True)
    assert_same_result(ended, whole)


def test_checkpoints_that_can_not_be_gone_on_with_stay(ended: Path, tokenizer: Any) -> None:
    """Of another number of processes, or damaged after they were whole: nothing is removed."""
    for name in ("road.json", "road.safetensors", "log.jsonl"):
        (ended / name).unlink()
    folder = ended / "checkpoints"
    identity = json.loads((folder / "run.json").read_text())
    assert identity.pop("processes") == 1
    files = sorted(folder.rglob("*"))
    with pytest.raises(RoadError, match="trains in 1 processes, not in 2: expected as many"):
        run_folder.last_checkpoint(ended, identity, resume=True, processes=2)
    for path in run_folder.checkpoints_in(folder):
        (path / "optimizer.pt").write_bytes(b"")
    with pytest.raises(RoadError, match="can't be read: remove .*checkpoints to start anew"):
        run(tokenizer, ended, resume=True)
    assert sorted(folder.rglob("*")) == files


@pytest.mark.parametrize("content", [None, "", "{", "[]", "null"])
def test_checkpoints_of_nobody_are_refused(
    ended: Path, tokenizer: Any, content: str | None
) -> None:
    (ended / "road.json").unlink()
    file = ended / "checkpoints" / "run.json"
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(
        RoadError, match=r"unfinished run in .*(no readable run.json|other settings or data)"
    ):
        run(tokenizer, ended, resume=True)
    with pytest.raises(RoadError, match="holds an unfinished run: add --resume"):
        run(tokenizer, ended)


def test_other_data_and_another_base_model_are_not_gone_on_with(
    ended: Path, tokenizer: Any
) -> None:
    (ended / "road.json").unlink()
    other = {"a": [{**row, "output": "abd"} for row in DATA["a"]]}  # as many tokens
    with pytest.raises(RoadError, match=r"other settings or data \(tokens\)"):
        run(tokenizer, ended, resume=True, data=other)
    with pytest.raises(RoadError, match=r"other settings or data \(settings\)"):
        run(tokenizer, ended, resume=True, lr=1e-2)
    road = new_road()
    road.model.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1
    with pytest.raises(RoadError, match=r"other settings or data \(base\)"):
        roadint.train(road, tokenizer, DATA, out=ended, resume=True, **SETTINGS)


def test_an_older_result_is_not_taken_for_the_run_that_replaces_it(
    whole: Path, tokenizer: Any, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    run(tokenizer, out, lr=1e-2)
    older = result(out)[0]
    assert killed(lambda: run(tokenizer, out), 30)
    assert not run_folder.is_finished(out)
    run(tokenizer, out, resume=True)
    assert not torch.equal(result(out)[0], older)
    assert_same_result(out, whole)


def test_what_killed_saves_left_goes_and_a_damaged_result_is_trained_again(
    whole: Path, tokenizer: Any, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    for name in (".road.safetensors.ab", ".road.json.cd", ".log.jsonl.ef"):
        (out / name).write_text("half")
    run(tokenizer, out, resume=True)
    assert_same_result(out, whole)
    os.rename(
        out / "road.safetensors", out / ".road.safetensors.ab"
    )  # a save that was killed between its two files
    (out / "road.safetensors").write_text("another's")
    run_folder.finish(out)
    assert torch.equal(read(out).tensors["0.theta"], result(whole)[0])
    (out / "road.json").write_text("{")
    run(tokenizer, out)
    assert_same_result(out, whole)
