"""The app without a model, and what is refused before there is one."""

from pathlib import Path
from typing import Any

import pytest

from roadint import RoadError
from roadint.demo.service import SHIPPED, Service
from tests.helpers import call


def test_a_page_opens_what_it_may_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "roadint.demo.service.open_checkpoint",
        lambda *_: (_ for _ in ()).throw(OSError("no model here")),
    )
    service = Service(folder=tmp_path)
    assert not service.wait(10)
    assert "no model here" in service.status
    assert service.names([]) == ["german", "english"]
    for name, message in {
        "": "no checkpoint chosen",
        "../x": "not in the allowed folder",
        str(SHIPPED): "not in the allowed folder",
    }.items():
        with pytest.raises(RoadError, match=message):
            service.open(name)
    with pytest.raises(RoadError, match="could not be loaded"):
        service.batcher  # noqa: B018
    with pytest.raises(RoadError, match="no road.json"):
        Service(str(tmp_path))


def test_bad_options_are_told(capsys: Any, monkeypatch: Any) -> None:
    code, _, errors = call(capsys, monkeypatch, "demo", "--auth", "me")
    assert (code, "USER:PASSWORD" in errors) == (2, True)
    code, _, errors = call(capsys, monkeypatch, "demo", "nothing/here/at/all")
    assert (code, "neither a folder nor" in errors) == (2, True)
