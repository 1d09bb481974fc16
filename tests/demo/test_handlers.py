"""What pages and clients send: bad values are named, and pages do not see each other."""

import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from roadint.demo.controls import CONTROLS
from roadint.demo.handlers import Handlers
from roadint.demo.service import Service
from tests.demo.helpers import HOSTILE


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("max_new_tokens", float("nan"), "new tokens nan"),
        ("max_new_tokens", float("inf"), "new tokens inf"),
        ("max_new_tokens", "many", "new tokens 'many'"),
        ("max_new_tokens", -5, "new tokens -5"),
        ("max_new_tokens", 0, "new tokens 0"),
        ("max_new_tokens", 1.5, "new tokens 1.5"),
        ("max_new_tokens", [3], r"new tokens \[3\]"),
        ("temperature", float("nan"), "temperature nan"),
        ("temperature", float("inf"), "temperature inf"),
        ("temperature", -1, "temperature -1"),
        ("temperature", 1e-40, "temperature 1e-40"),
        ("temperature", "hot", "temperature 'hot'"),
        ("seed", float("nan"), "seed nan"),
        ("seed", 2**70, "seed 1180591620717411303424"),
        ("seed", 10**400, "seed 1000"),
        ("seed", 0.5, "seed 0.5"),
        ("seed", "lucky", "seed 'lucky'"),
        ("seed", True, "seed True"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_numbers_that_are_none_are_named(
    small: Service, setting: str, value: Any, message: str
) -> None:
    """By the endpoint and by the page alike."""
    do = Handlers(small)
    with pytest.raises(gr.Error, match=message):
        do.answers("say", ["a"], **{setting: value})
    values = {"max_new_tokens": 4, "temperature": 0, "seed": 0, setting: value}
    for updates in (
        do.compare("say", ["a"], "", *values.values(), True, []),
        do.compose("say", "a", *values.values(), []),
    ):
        (update,) = updates
        notice = update[0] if isinstance(update, list) else update
        assert "ri-error" in notice
        assert "try again" not in notice


def test_more_tokens_than_possible_are_as_many_as_are_and_numbers_of_links_are_clamped(
    small: Service,
) -> None:
    do = Handlers(small)
    assert do.answers("say", ["a"], 10**9)["settings"]["max_new_tokens"] == 512
    assert do.answers("say", ["a"], 4.0, None, None)["settings"] == {
        "max_new_tokens": 4,
        "temperature": 0.0,
        "seed": 0,
    }
    query = SimpleNamespace(get={"n": "nan", "t": "inf", "seed": "1e400"}.get, getlist=lambda _: [])
    assert do.arrive(SimpleNamespace(query_params=query))[3:6] == [48, 0, 0]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("x" * 5_000_000, "5,000,000 characters"),
        ("half \ud800", "surrogate"),
        ("nul \0", "NUL"),
        ("   ", "the prompt is empty"),
        (None, "the prompt is empty"),
        (7, "the prompt 7 is no text"),
        ({"path": "/etc/passwd"}, "is no text"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_prompts_that_are_none_are_told(small: Service, prompt: Any, message: str) -> None:
    """Before the tokenizer sees them, which takes seconds for megabytes; what is told can be sent as UTF-8."""
    small.batcher.tokenizer = None
    do = Handlers(small)
    with pytest.raises(gr.Error, match=message):
        do.answers(prompt, ["a"])
    ((shown, *_),) = do.compare(prompt, ["a"], "", 4, 0, 0, True, [])
    assert message in shown
    assert shown.encode()
    assert message in do.look(prompt, ["a"], "", [])[0]


@pytest.mark.parametrize(
    "text",
    ["a" * 5000, " " * 100_000, "\ud800", "a\0", HOSTILE, 5, ["a"], {"a": 1}, "a@second", "2*"],
    ids=lambda value: repr(value)[:20],
)
def test_expressions_that_are_none_are_told(small: Service, text: Any) -> None:
    do = Handlers(small)
    for shown in (
        next(do.compose("say", text, 4, 0, 0, [])),
        next(do.compare("say", [text], "", 4, 0, 0, True, []))[0],
        next(do.compare("say", ["a"], text, 4, 0, 0, True, []))[0]
        if text != " " * 100_000
        else do.by_text(text, [])[0],
        do.by_text(text, [])[0],
        do.look("say", [text], "", [])[0],
    ):
        assert "ri-error" in shown
        assert shown.encode()
        assert "<img" not in shown
        assert len(shown) < 2000
    with pytest.raises(gr.Error):
        do.answers("say", [text])
    for chosen in ("aa", {"a": 1}, ["a"] * 1000):
        assert "compositions" in next(do.compare("say", chosen, "", 4, 0, 0, True, []))[0]
    assert "strength of a" in do.by_controls([], *[True] * CONTROLS, *[float("nan")] * CONTROLS)[1]


def test_pages_do_not_see_each_others_names(small: Service, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "runs" / "second", tmp_path / "runs" / "theirs")
    do = Handlers(small)
    for name in ("second", "theirs"):
        small.open(name)
    shown = next(do.compose("say", "a@theirs", 4, 0, 0, ["second"]))
    assert "unknown subspace" in shown
    assert "b@theirs" not in shown
    assert "a@second" in shown
    with pytest.raises(gr.Error, match="expected one of 'a', 'b'"):
        do.answers("say", ["nothing"])
    record = do.answers("say", ["all"], 4)
    assert [answer["composition"] for answer in record["answers"]] == ["a + b"]


def test_unexpected_errors_are_one_neutral_line(
    small: Service, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    do = Handlers(small)

    def broken(*_: Any, **__: Any) -> Any:
        raise KeyError("/home/somebody/token")

    monkeypatch.setattr(small, "parse", broken)
    monkeypatch.setattr(small.batcher.road, "add_checkpoint", broken)
    with caplog.at_level(logging.ERROR, "roadint.demo"):
        messages = [
            next(do.compose("say", "a", 4, 0, 0, [])),
            next(do.compare("say", ["a"], "", 4, 0, 0, True, []))[0],
        ]
        messages += [
            do.look("say", ["a"], "", [])[0],
            do.by_text("a", [])[0],
            do.open("second", [], [])[0],
        ]
        with pytest.raises(gr.Error) as error:
            do.answers("say", ["a"])
    for message in (*messages, str(error.value.message)):
        assert "something went wrong on the server" in message
        assert "somebody" not in message
    assert caplog.text.count("somebody") >= 6
