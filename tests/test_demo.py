"""The app without a browser: the service's refusals, the views, and the engine's shared batches on a tiny model."""

import threading
from pathlib import Path
from typing import Any

import pytest

from roadint import RoadError
from roadint.composition import Composition
from roadint.demo import views
from roadint.demo.engine import Engine, Settings, Update
from roadint.demo.service import SHIPPED, Service
from tests.conftest import build, trained
from tests.test_cli import call


def test_requests_of_one_moment_share_a_batch_and_keep_their_own(tokenizer: Any) -> None:
    """Twelve callers at once, other prompts, compositions and lengths: what each gets alone."""
    road = trained(build("llama")).eval()
    engine = Engine(road, tokenizer)
    asked = [(f"say {n}", [None, "a", "a + b"][: 1 + n % 3], 3 + n % 4) for n in range(12)]
    found: dict[int, Update] = {}

    def ask(number: int) -> None:
        prompt, compositions, length = asked[number]
        parsed = [Composition.parse(each, road.names) for each in compositions]
        *_, found[number] = engine.answers(prompt, parsed, Settings(length))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, (prompt, compositions, length) in enumerate(asked):
        expected = road.generate(tokenizer, prompt, compose=compositions, max_new_tokens=length)
        assert found[number].texts == expected
        assert found[number].done


def test_closing_frees_the_engine(tokenizer: Any) -> None:
    engine = Engine(trained(build("llama")).eval(), tokenizer)
    long = engine.answers("say", [Composition()], Settings(500))
    next(long)
    long.close()
    *_, last = engine.answers("say", [Composition()], Settings(2))
    assert last.done


def test_a_page_opens_what_it_may_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roadint.demo.service.open_checkpoint", lambda *_: (_ for _ in ()).throw(OSError("no model here")))
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
        service.engine  # noqa: B018
    with pytest.raises(RoadError, match="no road.json"):
        Service(str(tmp_path))


def test_texts_are_escaped_and_differences_marked() -> None:
    update = Update(["a <b> c\nd", "a <i> c\nd e"], tokens=7, seconds=2.0, done=True)
    shown = views.cards(["none", "german"], update, highlight=True)
    assert "a &lt;b&gt; c\nd" in shown
    assert "a <mark>&lt;i&gt;</mark> c\nd <mark>e</mark>" in shown
    assert "3.5 tokens a second" in shown
    record = views.record("x | y", ["none", "german"], update, Settings(), {"model": "m", "checkpoint": "c"})
    assert "x \\| y" in views.as_markdown(record)


def test_bad_options_are_told(capsys: Any, monkeypatch: Any) -> None:
    code, _, errors = call(capsys, monkeypatch, "demo", "--auth", "me")
    assert (code, "USER:PASSWORD" in errors) == (2, True)
    code, _, errors = call(capsys, monkeypatch, "demo", "nothing/here/at/all")
    assert (code, "neither a folder nor" in errors) == (2, True)
