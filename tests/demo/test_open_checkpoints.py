"""Checkpoints that pages open: from where, how many at once, and what nobody sees of the machine."""

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from roadint import RoadError, RoadIntervention
from roadint.demo.handlers import Handlers
from roadint.demo.look import inside
from roadint.demo.service import Service
from tests.demo.helpers import HOSTILE, no_network
from tests.helpers import build, trained


def test_names_from_the_page_open_below_the_folder_alone(
    small: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not through links, parents, homes, other drives or other folders of the same name."""
    no_network(monkeypatch)
    runs, outside = tmp_path / "runs", tmp_path / "private" / "secret"
    shutil.copytree(runs / "second", outside)
    shutil.copytree(runs / "second", tmp_path / "runs-more" / "x")
    (runs / "link").symlink_to(outside)
    (runs / "loop").symlink_to(runs / "loop")
    (runs / "half").mkdir()
    for name in ("road.json", "road.safetensors"):
        (runs / "half" / name).symlink_to(outside / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(outside.parent))
    names = [
        "private/secret",
        "./private/secret",
        str(outside),
        "../private/secret",
        "second/../../private/secret",
        "link",
        "loop/x",
    ]
    names += [
        "half",
        "~/secret",
        "~",
        "../runs-more/x",
        "..\\private\\secret",
        "C:\\secret",
        "file:///etc",
        "a" * 299,
        "a/" * 149,
    ]
    names += ["a\0b", "\ud800", "x" * 100_000, HOSTILE]
    for name in names:
        with pytest.raises(RoadError) as error:
            small.open(name)
        assert str(tmp_path) not in str(error.value).replace(name, "")
        assert len(str(error.value)) < 600
    assert len(small.batcher.road.interventions) == 1
    assert (
        small.open(" second ")
        == small.open("./second")
        == small.open(str(runs / "second"))
        == "second"
    )
    assert len(small.batcher.road.interventions) == 2


def test_a_hub_id_is_the_hubs_whatever_lies_in_the_working_directory(
    small: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a token, once for each, no more than a few in an hour, none of gigabytes."""
    no_network(monkeypatch)
    trained(build("llama"), RoadIntervention(layer=2, subspaces={"hub": "[0, d)"})).save_pretrained(
        tmp_path / "hub"
    )
    trained(build("llama")).save_pretrained(tmp_path / "me" / "road")
    monkeypatch.chdir(tmp_path)
    asked: list[str] = []

    def download(name: str, *, token: Any, **_: Any) -> str:
        assert token is False
        asked.append(name)
        if name != "me/road":
            raise OSError("no such repository")
        return str(tmp_path / "hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert small.open("me/road") == small.open("me/road") == "road"
    assert small.names(["road"]) == ["a", "b", "hub@road"]
    assert small.opened(["road"])[1]["origin"] == "me/road"
    assert asked == ["me/road"]
    for number in range(100):
        with pytest.raises(RoadError, match="not in the allowed folder"):
            small.open(f"some/body{number}")
    assert len(asked) == 32
    assert Handlers(small).open("me/road", [])[1] == ["road"]


def test_checkpoints_of_the_hub_that_are_too_large_are_not_fetched(
    small: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_network(monkeypatch, size=1 << 40)
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("fetched")
    )
    with pytest.raises(RoadError, match="MiB"):
        small.open("me/huge")


def test_checkpoints_that_no_request_needs_make_room(small: Service, tmp_path: Path) -> None:
    """Sixteen are on the model; the least recently used one goes, comes back when a page composes with it, and the first stays."""
    for number in range(20):
        shutil.copytree(tmp_path / "runs" / "second", tmp_path / "runs" / f"c{number}")
    road, do = small.batcher.road, Handlers(small)
    labels = [small.open("c0")]
    expected = do_compose(do, "a@c0", labels)
    with small.using([small.parse("a@c0", labels)]):
        for number in range(1, 20):
            assert small.open(f"c{number}") == f"c{number}"
            assert len(road.interventions) <= 17
        assert "a@c0" in road.names
        assert "a@c1" not in road.names
    small.open("second")
    small.open("c1")
    assert "a@c0" not in road.names
    assert small.names(labels) == ["a", "b", "a@c0", "b@c0"]
    assert do_compose(do, "a@c0", labels) == expected
    assert "a@c0" in road.names
    assert {"a", "b"} < set(road.names)
    assert inside(small, "say", "a@c2", ["c2"])
    # All in use: the next one is told so, and nothing goes.
    held = [name.partition("@")[2] for name in road.names if name.startswith("a@")]
    with small.using([small.parse(f"a@{label}", [label]) for label in held]):
        missing = next(f"c{number}" for number in range(20) if f"c{number}" not in held)
        before = road.names
        with pytest.raises(RoadError, match="in use"):
            small.open(missing)
        assert road.names == before
    # One that is gone from the folder is told, without the folder's own path.
    shutil.rmtree(tmp_path / "runs" / missing)
    with (
        pytest.raises(RoadError, match="no road.json") as error,
        small.using([small.parse(f"a@{missing}", [missing])]),
    ):
        pass
    assert str(tmp_path) not in str(error.value)


def test_what_was_trained_again_is_another_checkpoint(small: Service, tmp_path: Path) -> None:
    """Pages that opened the first one keep it, as long as it is on the model."""
    road, do, folder = small.batcher.road, Handlers(small), tmp_path / "runs" / "second"
    first = small.open("second")
    expected = do_compose(do, "a@second", [first])
    trained(build("llama"), RoadIntervention(layer=2, subspaces={"new": "[0, d)"})).save_pretrained(
        folder
    )
    second = small.open("second")
    assert (first, second) == ("second", "second_2")
    assert small.open("second") == second
    assert small.names([second]) == ["a", "b", "new@second_2"]
    assert [each["label"] for each in small.opened([first, second])[1:]] == [first, second]
    assert do_compose(do, "a@second", [first]) == expected
    assert "new@second_2" in road.names
    for number in range(16):
        shutil.copytree(folder, tmp_path / "runs" / f"c{number}")
        small.open(f"c{number}")
    assert "a@second" not in road.names
    with (
        pytest.raises(RoadError, match="second was trained again since it was opened as 'second'"),
        small.using([small.parse("a@second", [first])]),
    ):
        pass


def do_compose(do: Handlers, expression: str, labels: list[str]) -> str:
    *_, last = map(json.loads, do.compare("say it", [expression], 4, 0, 0, 1, labels))
    assert last["done"]
    return str(last["texts"][0])


def test_nothing_is_opened_twice_and_others_are_answered_meanwhile(
    small: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_network(monkeypatch)
    shutil.copytree(tmp_path / "runs" / "second", tmp_path / "hub")
    going, begun = threading.Event(), threading.Event()
    asked: list[str] = []

    def slow(name: str, **_: Any) -> str:
        asked.append(name)
        begun.set()
        going.wait(30)
        return str(tmp_path / "hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", slow)
    labels: list[str] = []
    threads = [
        threading.Thread(target=lambda: labels.append(small.open("me/slow"))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    assert begun.wait(10)
    assert Handlers(small).answers("say", ["a"], 4)["tokens"] > 0
    assert small.open("second") == "second"
    going.set()
    for thread in threads:
        thread.join()
    assert labels == ["slow"] * 6
    assert asked == ["me/slow"]
    assert len(small.batcher.road.interventions) == 3


def test_opening_waits_for_the_batch_that_runs(small: Service) -> None:
    """And runs beside no other: the model's parts change between batches."""
    opened = threading.Event()
    with small.batcher.lock:
        thread = threading.Thread(target=lambda: (small.open("second"), opened.set()))
        thread.start()
        assert not opened.wait(0.3)
        assert len(small.batcher.road.interventions) == 1
    assert opened.wait(10)
    thread.join()


def test_the_machines_folders_are_not_told(small: Service, tmp_path: Path) -> None:
    tensors = tmp_path / "runs" / "second" / "road.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-20])
    with pytest.raises(
        RoadError, match="second/road.safetensors is truncated or was altered"
    ) as error:
        small.open("second")
    assert str(tmp_path) not in str(error.value)
    small.batcher.road.model.config._name_or_path = str(tmp_path / "models" / "tiny")
    small.batcher.road.model.name_or_path = str(tmp_path / "models" / "tiny")
    assert small.status.startswith("tiny, ")
    assert Handlers(small).answers("say", ["a"], 4)["model"] == "tiny"
