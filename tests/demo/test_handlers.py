"""What pages and clients send: bad values are named, and pages do not see each other."""

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from roadint import RoadIntervention, RoadModel
from roadint.demo.handlers import Handlers
from roadint.demo.service import Service
from tests.demo.helpers import HOSTILE
from tests.helpers import build


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
    (told,) = do.compare("say", ["a"], *values.values(), 1, [])
    error = json.loads(told)["error"]
    assert str(message).replace("\\", "") in error
    assert "try again" not in error


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
    told = json.loads(do.arrive("?n=nan&t=inf&seed=1e400")[0])
    assert told["settings"] == {"max_new_tokens": 48, "temperature": 0, "seed": 0}
    for query in ("?%ff&&==", 7, None, "x" * 200_000, "?prompt=\0", ["?n=3"]):
        assert json.loads(do.arrive(query)[0])["prompt"] == ""


def test_an_address_says_what_a_page_shows(small: Service) -> None:
    do = Handlers(small)
    told, labels, *_ = do.arrive("?prompt=say&c=0.5*a&c=a%40second&c=2*&k=second&k=nowhere")
    arrival = json.loads(told)
    assert (arrival["prompt"], arrival["run"], labels) == ("say", False, ["second"])
    half, other, bad = arrival["compositions"]
    assert (half["text"], half["strengths"]) == ("0.5*a", {"a": 0.5})
    assert other["strengths"] == {"a@second": 1.0}
    assert "is not understood" in bad["error"]
    assert "nowhere" in arrival["notice"]
    assert arrival["names"] == ["a", "b", "a@second", "b@second"]
    assert [each["name"] for each in arrival["checkpoints"]] == ["first", "second"]
    for query, runs in {"c=a": True, "c=a%40second&k=second": True, "c=a&k=nowhere": False}.items():
        assert json.loads(do.arrive(f"?prompt=say&{query}")[0])["run"] is runs
    assert not json.loads(do.arrive("?prompt=say&c=a&checkpoint=elsewhere")[0])["run"]
    plain = json.loads(do.arrive("")[0])
    assert [each["text"] for each in plain["compositions"]] == ["none", "a", "b", "a + b"]
    assert (plain["run"], plain["notice"]) == (False, "")
    assert "checkpoint elsewhere" in json.loads(do.arrive("?checkpoint=elsewhere")[0])["notice"]


def test_columns_may_ask_the_same(small: Service) -> None:
    *_, last = map(json.loads, Handlers(small).compare("say", ["a", "b", "1*a"], 4, 0, 0, 7, []))
    assert (last["done"], last["flight"], last["names"]) == (True, 7, ["a", "b", "a"])
    assert last["texts"][0] == last["texts"][2]
    assert last["tokens"] <= 8  # of two rows


def test_what_a_page_stops_ends_and_nothing_else_does(small: Service) -> None:
    """Not another page's question of the same number, and not the page's next one."""
    do = Handlers(small)
    page, other = (SimpleNamespace(session_hash=name, client=None) for name in ("one", "two"))

    def asked(flight: int, of: Any) -> Any:
        answers = do.compare("say", ["a"], 512, 0, 0, flight, [], of)
        next(answers)
        return answers

    running = [asked(1, page), asked(2, page), asked(1, other)]
    do.stop(1, [], page)  # type: ignore[arg-type]
    assert list(running[0]) == []
    for hostile in ("x", None, [1]):
        do.stop(hostile, [], page)  # type: ignore[arg-type]
    assert [json.loads(list(each)[-1])["done"] for each in running[1:]] == [True, True]
    for number in range(1100):
        do.stop(1, [], SimpleNamespace(session_hash=str(number), client=None))  # type: ignore[arg-type]
    assert len(do._stopped) == 1000


def test_no_message_is_like_another(small: Service) -> None:
    """Gradio passes on what is new alone: a second refusal has to be heard too."""
    do = Handlers(small)
    told = [do.parse("germn", 1, []) for _ in range(2)] + [do.open("no", [])[0] for _ in range(2)]
    assert len(set(told)) == 4


def test_a_checkpoint_is_closed_for_a_page_alone(small: Service) -> None:
    do = Handlers(small)
    told, labels = do.open("second", [])
    assert json.loads(told)["checkpoints"][1]["names"] == ["a@second", "b@second"]
    assert "numbers" in json.loads(told)["checkpoints"][1]["about"] or "layer" in told
    told, others = do.close("second", labels)
    assert (json.loads(told)["names"], others, labels) == (["a", "b"], [], ["second"])
    assert do.close({"x": 1}, labels)[1] == labels
    assert json.loads(do.parse("a@second", 1, labels))["strengths"] == {"a@second": 1.0}


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
    (shown,) = do.compare(prompt, ["a"], 4, 0, 0, 1, [])
    assert message in json.loads(shown)["error"]
    assert shown.encode()
    assert message in json.loads(do.look(prompt, "a", 1, []))["error"]


@pytest.mark.parametrize(
    "text",
    ["a" * 5000, " " * 100_000, "\ud800", "a\0", HOSTILE, 5, ["a"], {"a": 1}, "a@second", "2*"],
    ids=lambda value: repr(value)[:20],
)
def test_expressions_that_are_none_are_told(small: Service, text: Any) -> None:
    do = Handlers(small)
    shown = [
        next(do.compare("say", [text], 4, 0, 0, 1, [])),
        do.parse(text, 1, []),
        do.look("say", text, 1, []),
    ]
    for told in shown:
        assert json.loads(told)["error"]
        assert told.encode()
        assert len(told) < 2000
    with pytest.raises(gr.Error):
        do.answers("say", [text])
    for chosen in ("aa", {"a": 1}, ["a"] * 1000):
        assert "compositions" in next(do.compare("say", chosen, 4, 0, 0, 1, []))


def test_pages_do_not_see_each_others_names(small: Service, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "runs" / "second", tmp_path / "runs" / "theirs")
    do = Handlers(small)
    for name in ("second", "theirs"):
        small.open(name)
    shown = next(do.compare("say", ["a@theirs"], 4, 0, 0, 1, ["second"]))
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
            next(do.compare("say", ["a"], 4, 0, 0, 1, [])),
            do.look("say", "a", 1, []),
            do.parse("a", 1, []),
            do.open("second", [])[0],
        ]
        with pytest.raises(gr.Error) as error:
            do.answers("say", ["a"])
    for message in (*messages, str(error.value.message)):
        assert "something went wrong on the server" in message
        assert "somebody" not in message
    assert caplog.text.count("somebody") >= 5


def test_a_links_labels_are_those_of_its_page(small: Service, tmp_path: Path) -> None:
    """Another server opened checkpoints of one name in another order."""
    for seed in ("one", "two"):
        shutil.copytree(tmp_path / "runs" / "second", tmp_path / "runs" / seed / "best")
    do = Handlers(small)
    assert do.arrive("?k=two/best&k=one/best")[1] == ["best", "best_2"]  # as links were
    query = "?prompt=say&k=best%3Done/best&k=best_2%3Dtwo/best&c=a%40best+%2B+0.5*b%40best_2&c=best"
    told, labels, *_ = do.arrive(query)
    arrival = json.loads(told)
    assert (arrival["run"], labels) == (True, ["best_2", "best"])
    first, second = arrival["compositions"]
    assert first["strengths"] == {"a@best_2": 1.0, "b@best": 0.5}
    assert set(second["strengths"]) == {"a@best_2", "b@best_2"}


def test_a_link_of_another_checkpoint_of_that_name_waits(small: Service) -> None:
    do = Handlers(small)
    (first, *_) = json.loads(do.arrive("")[0])["checkpoints"]
    link = "?prompt=say&c=a&checkpoint=first&digest="
    assert json.loads(do.arrive(link + first["digest"])[0])["run"]
    arrival = json.loads(do.arrive(link + "0123456789ab")[0])
    assert (arrival["run"], "another checkpoint" in arrival["notice"]) == (False, True)


def test_what_can_run_on_no_prompt_is_told_where_it_is_written(small: Service) -> None:
    """Not when all columns are asked, which would all fail."""
    do = Handlers(small)
    do.open("second", [])
    assert "error" not in json.loads(do.parse("a + a@second", 1, ["second"]))
    assert "error" in json.loads(do.parse("1e9*a", 1, []))
    basis = RoadModel(
        build("llama"), RoadIntervention(layer=1, basis="hadamard", subspaces={"a": "[0, d/2)"})
    )
    basis.save_pretrained(small.folder / "third")
    do.open("third", [])
    told = json.loads(do.parse("0.5*a + 0.5*a@third", 1, ["third"]))
    assert "bas" in told["error"]
