"""Whole files and pairs of files: killed or failing at every step, the old or the new is there."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from roadint.files.atomic import candidates, whole_folder, write_pair, write_whole
from tests.helpers import counted


def pair_in(folder: Path) -> tuple[str, str]:
    """The pair that a reader would find: here `about` says what its data is, word for word."""
    about = (folder / "about").read_text()
    data = next(
        path for path in candidates(folder / "data") if path.read_text() == f"data of {about}"
    )
    return data.read_text(), about


def save(folder: Path, version: str) -> None:
    write_pair(folder / "data", f"data of {version}", folder / "about", version)


def test_killed_at_any_step_one_pair_is_there(tmp_path: Path) -> None:
    outcomes = []
    for at in range(30):
        folder = tmp_path / str(at)
        folder.mkdir()
        save(folder, "old")
        child = os.fork()
        if not child:
            counted(pytest.MonkeyPatch(), at, lambda: os._exit(9))
            save(folder, "new")
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        outcomes.append(pair_in(folder)[1])
        save(folder, "newer")
        assert pair_in(folder) == ("data of newer", "newer")
        assert sorted(path.name for path in folder.iterdir()) == ["about", "data"], (
            "the next save removes what a kill left"
        )
        if code == 0:
            break
    assert outcomes[0] == "old"
    assert outcomes[-1] == "new"
    assert outcomes == sorted(outcomes, reverse=True)
    assert len(outcomes) > 6


@pytest.mark.parametrize("before", [True, False])
def test_failing_at_any_step_leaves_what_was_there_and_nothing_beside(
    tmp_path: Path, before: bool
) -> None:
    def full() -> None:
        raise OSError("disk full")

    for at in range(30):
        folder = tmp_path / str(at)
        folder.mkdir()
        if before:
            save(folder, "old")
        with pytest.MonkeyPatch.context() as patch:
            done = counted(patch, at, full)
            try:
                save(folder, "new")
                failed = False
            except OSError:
                failed = True
        left = {
            path.name: path.read_text()
            for path in folder.iterdir()
            if not path.name.startswith(".") or failed
        }
        old = {"about": "old", "data": "data of old"} if before else {}
        assert left == (old if failed else {"about": "new", "data": "data of new"}), done
        if at >= len(done):
            return
    raise AssertionError("more steps than expected")


def test_failing_for_good_leaves_the_old_pair_to_be_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, "old")
    real, calls = os.replace, []

    def replace(*args: Any) -> None:
        calls.append(args)
        if len(calls) > 1:  # the rename back fails too
            raise OSError("gone")
        real(*args)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="gone"):
        save(tmp_path, "new")
    assert pair_in(tmp_path) == ("data of old", "old")


def test_an_interrupt_after_the_last_rename_leaves_the_new_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, "old")
    real = os.replace

    def replace(source: Path, target: Path) -> None:
        real(source, target)
        if target.name == "about":
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, "new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "about": "new",
        "data": "data of new",
    }


def test_a_file_system_without_links_is_copied_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: Any) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", link)
    for version in ("old", "new"):
        save(tmp_path, version)
    assert pair_in(tmp_path) == ("data of new", "new")


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_umask_says_who_may_read(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_whole(tmp_path / "file", "text")
        save(tmp_path, "new")
    finally:
        os.umask(before)
    for name in ("file", "data", "about"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_is_whole_or_not_there(
    tmp_path: Path, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "deep" / "out"
    if there:
        out.mkdir(parents=True)

    def write() -> None:
        with whole_folder(out, last="a") as scratch:
            for name in "abc":
                (scratch / name).write_text(name)

    real, order = os.replace, []

    def replace(source: Path, target: Path) -> None:
        order.append(target.name)
        if len(order) == 3:
            raise OSError("disk full")
        real(source, target)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(os, "replace", replace)
        write()
    assert order[-1] == "a"
    assert sorted(tmp_path.rglob("*")) == ([tmp_path / "deep", out] if there else [])
    write()
    assert {path.name: path.read_text() for path in out.iterdir()} == {name: name for name in "abc"}
