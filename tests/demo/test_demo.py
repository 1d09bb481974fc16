"""The app without a browser: the service's refusals, the views, and the batcher's shared batches on a tiny model."""

import logging
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import huggingface_hub
import pytest
import torch

from roadint import RoadError, RoadIntervention, RoadModel
from roadint.demo import exports, views
from roadint.demo import service as service_module
from roadint.demo.app import build as build_page
from roadint.demo.batching import Batcher
from roadint.demo.controls import CONTROLS
from roadint.demo.failures import UNEXPECTED
from roadint.demo.handlers import Handlers
from roadint.demo.look import inside
from roadint.demo.requests import AnswerSettings, Update
from roadint.demo.service import SHIPPED, Service
from roadint.grammar.composition import Composition
from roadint.inspection.lens import NextToken
from tests.helpers import build, call, trained

HOSTILE = "<img src=x onerror=alert(1)>"


def last_of(
    batcher: Batcher, road: RoadModel, text: str, prompt: str = "say it", length: int = 4
) -> list[str]:
    *_, last = batcher.answers(
        prompt, [Composition.parse(text, road.names)], AnswerSettings(length)
    )
    return last.texts


def at_once(batcher: Batcher, road: RoadModel, texts: Sequence[str]) -> dict[str, Any]:
    """What each gets, or is told, when all of them wait for one batch."""
    found: dict[str, Any] = {}

    def ask(text: str) -> None:
        try:
            found[text] = last_of(batcher, road, text)
        except Exception as error:
            found[text] = error

    first = threading.Thread(target=last_of, args=(batcher, road, "none"))
    threads = [threading.Thread(target=ask, args=(text,)) for text in texts]
    with batcher.lock:  # as when the model is busy
        first.start()
        time.sleep(0.2)
        for thread in threads:
            thread.start()
        time.sleep(0.2)
    for thread in (first, *threads):
        thread.join()
    return found


@pytest.fixture
def small(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Service:
    """A service on a tiny model; its folder, tmp_path / "runs", holds `second`."""
    road = trained(build("llama")).eval()
    road.save_pretrained(tmp_path / "first")
    road.save_pretrained(tmp_path / "runs" / "second")
    monkeypatch.setattr(service_module, "open_checkpoint", lambda *_: (road, tokenizer))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    service = Service(str(tmp_path / "first"), folder=tmp_path / "runs")
    assert service.wait(60), service.status
    return service


def no_network(monkeypatch: pytest.MonkeyPatch, size: int | None = None) -> None:
    """The hub cannot be asked about a repository; or has one of this size."""

    class Api:
        def __init__(self, token: Any = None) -> None:
            assert token is False

        def model_info(self, *_: Any, **__: Any) -> Any:
            if size is None:
                raise OSError("no connection")
            return SimpleNamespace(
                siblings=[SimpleNamespace(rfilename="road.safetensors", size=size)]
            )

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)


def test_requests_of_one_moment_share_a_batch_and_keep_their_own(tokenizer: Any) -> None:
    """Twelve callers at once, other prompts, compositions and lengths: what each gets alone."""
    road = trained(build("llama")).eval()
    batcher = Batcher(road, tokenizer)
    asked = [(f"say {n}", [None, "a", "a + b"][: 1 + n % 3], 3 + n % 4) for n in range(12)]
    found: dict[int, Update] = {}

    def ask(number: int) -> None:
        prompt, compositions, length = asked[number]
        parsed = [Composition.parse(each, road.names) for each in compositions]
        *_, found[number] = batcher.answers(prompt, parsed, AnswerSettings(length))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, (prompt, compositions, length) in enumerate(asked):
        expected = road.answer(tokenizer, prompt, compose=compositions, max_new_tokens=length)
        assert found[number].texts == expected
        assert found[number].done


def test_closing_frees_the_engine(tokenizer: Any) -> None:
    batcher = Batcher(trained(build("llama")).eval(), tokenizer)
    long = batcher.answers("say", [Composition()], AnswerSettings(500))
    next(long)
    long.close()
    *_, last = batcher.answers("say", [Composition()], AnswerSettings(2))
    assert last.done


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


def test_texts_are_escaped_and_differences_marked() -> None:
    update = Update(["a <b> c\nd", "a <i> c\nd e"], tokens=7, seconds=2.0, done=True)
    shown = views.cards(["none", "german"], update, highlight=True)
    assert "a &lt;b&gt; c\nd" in shown
    assert "a <mark>&lt;i&gt;</mark> c\nd <mark>e</mark>" in shown
    assert "3.5 tokens a second" in shown
    record = exports.record(
        "x | y", ["none", "german"], update, AnswerSettings(), {"model": "m", "checkpoint": "c"}
    )
    assert "x \\| y" in exports.as_markdown(record)


def test_bad_options_are_told(capsys: Any, monkeypatch: Any) -> None:
    code, _, errors = call(capsys, monkeypatch, "demo", "--auth", "me")
    assert (code, "USER:PASSWORD" in errors) == (2, True)
    code, _, errors = call(capsys, monkeypatch, "demo", "nothing/here/at/all")
    assert (code, "neither a folder nor" in errors) == (2, True)


def test_what_the_model_refuses_is_told_to_who_asked_for_it(tokenizer: Any, tmp_path: Path) -> None:
    """Sums that don't commute, positions outside of a prompt, an inverse that does not exist: before a batch is shared."""
    model = build("llama")

    def saved(name: str, site: RoadIntervention, scale: float | None = None) -> Path:
        other = trained(model, site)
        with torch.no_grad():
            if scale is not None:
                site.alpha.fill_(scale)
        other.save_pretrained(tmp_path / name)
        return tmp_path / name

    road = trained(model).eval()
    road.add_checkpoint(
        saved("two", RoadIntervention(layer=1, subspaces={"q": "[0, d)"}, basis="random")), "two"
    )
    road.add_checkpoint(
        saved("far", RoadIntervention(layer=2, position="at(400)", subspaces={"f": "[0, d)"})),
        "far",
    )
    road.add_checkpoint(
        saved("zero", RoadIntervention(layer=2, subspaces={"z": "[0, d)"}), 0.0), "zero"
    )
    road.add_checkpoint(
        saved("three", RoadIntervention(layer=1, subspaces={"p": "[0, d)"})), "three"
    )
    batcher = Batcher(road, tokenizer)
    expected = last_of(batcher, road, "a")
    sent: list[int] = []
    generate = road.generate
    road.generate = lambda **given: sent.append(len(given["compose"])) or generate(**given)  # type: ignore[method-assign]
    found = at_once(batcher, road, ["a", "q@two + p@three", "f@far", "-z@zero"])
    assert found["a"] == expected
    for text, message in {
        "q@two + p@three": "different bases",
        "f@far": "outside a prompt",
        "-z@zero": "no inverse",
    }.items():
        assert isinstance(found[text], RoadError)
        assert message in str(found[text])
    assert sent == [1, 1]


def test_a_batch_that_fails_is_run_one_by_one(
    tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the reason: the others are answered as if alone, and who is told reads nothing of the machine's insides."""
    road = trained(build("llama")).eval()
    batcher = Batcher(road, tokenizer)
    expected = {text: last_of(batcher, road, text) for text in ("a", "a + b")}
    generate = road.generate

    def failing(**given: Any) -> Any:
        if any(str(each) == "b" for each in given["compose"]):
            raise RuntimeError("CUDA error at /home/somebody/secret.py")
        return generate(**given)

    road.generate = failing  # type: ignore[method-assign]
    with caplog.at_level(logging.ERROR, "roadint.demo"):
        found = at_once(batcher, road, ["a", "b", "a + b"])
    assert {text: found[text] for text in expected} == expected
    assert str(found["b"]) == UNEXPECTED
    assert "secret.py" in caplog.text
    assert last_of(batcher, road, "a") == expected["a"]


def test_waiting_requests_are_bounded_and_freed(tokenizer: Any) -> None:
    """For a visitor and for all; whoever goes leaves a place at once, also from a batch that has not begun."""
    batcher = Batcher(trained(build("llama")).eval(), tokenizer)

    def started(visitor: str | None) -> Any:
        updates = batcher.answers("say", [Composition()], AnswerSettings(1), visitor)
        next(updates)
        return updates

    with batcher.lock:
        first = threading.Thread(
            target=lambda: list(batcher.answers("say", [Composition()], AnswerSettings(1)))
        )
        first.start()
        time.sleep(0.2)  # it holds the batcher's thread
        blocker = threading.Thread(
            target=lambda: list(batcher.answers("say", [Composition()], AnswerSettings(1)))
        )
        blocker.start()
        time.sleep(0.2)
        mine = [started("me") for _ in range(8)]
        with pytest.raises(RoadError, match="8 requests of yours"):
            started("me")
        mine.pop().close()
        mine.append(started("me"))
        others = [started(f"other {number}") for number in range(64 - 8 - 2)]
        with pytest.raises(RoadError, match="64 requests of all visitors"):
            started("one more")
        others.pop().close()
        waits = started("one more")
        assert (
            next(waits).waiting > 0
        )  # an update comes although nothing runs, so that a page can stop it
        for each in (waits, *mine, *others):
            each.close()
    first.join()
    blocker.join()
    *_, last = batcher.answers("say", [Composition()], AnswerSettings(2), "me")
    assert last.done


def test_nobodys_second_request_comes_before_anothers_first(tokenizer: Any) -> None:
    """Sampled requests run by themselves: eight of one visitor, then one of another, which is the next."""
    road = trained(build("llama")).eval()
    batcher = Batcher(road, tokenizer)
    done: list[str] = []

    def ask(visitor: str, seed: int) -> None:
        list(batcher.answers("say", [Composition()], AnswerSettings(2, 1.0, seed), visitor))
        done.append(visitor)

    threads = [threading.Thread(target=ask, args=("many", seed)) for seed in range(8)]
    threads.append(threading.Thread(target=ask, args=("one", 0)))
    with batcher.lock:
        for thread in threads:
            thread.start()
            time.sleep(0.1)
    for thread in threads:
        thread.join()
    assert done.index("one") <= 1


def test_what_nobody_wants_any_more_stops(tokenizer: Any) -> None:
    batcher = Batcher(trained(build("llama")).eval(), tokenizer)
    asked: list[int] = []
    updates = list(
        batcher.answers(
            "say",
            [Composition()],
            AnswerSettings(500),
            wanted=lambda: len(asked) < 3 and not asked.append(1),
        )
    )
    assert len(updates) <= 4
    assert not updates[-1].done
    *_, last = batcher.answers("say", [Composition()], AnswerSettings(2))
    assert last.done


@pytest.mark.parametrize(
    ("setting", "value", "told"),
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
    small: Service, setting: str, value: Any, told: str
) -> None:
    """By the endpoint and by the page alike."""
    do = Handlers(small)
    with pytest.raises(gr.Error, match=told):
        do.answers("say", ["a"], **{setting: value})
    given = {"max_new_tokens": 4, "temperature": 0, "seed": 0, setting: value}
    for found in (
        do.compare("say", ["a"], "", *given.values(), True, []),
        do.compose("say", "a", *given.values(), []),
    ):
        (update,) = found
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
    ("prompt", "told"),
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
def test_prompts_that_are_none_are_told(small: Service, prompt: Any, told: str) -> None:
    """Before the tokenizer sees them, which takes seconds for megabytes; what is told can be sent as UTF-8."""
    small.batcher.tokenizer = None
    do = Handlers(small)
    with pytest.raises(gr.Error, match=told):
        do.answers(prompt, ["a"])
    ((shown, *_),) = do.compare(prompt, ["a"], "", 4, 0, 0, True, [])
    assert told in shown
    assert shown.encode()
    assert told in do.look(prompt, ["a"], "", [])[0]


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
        with pytest.raises(RoadError) as told:
            small.open(name)
        assert str(tmp_path) not in str(told.value).replace(name, "")
        assert len(str(told.value)) < 600
    assert len(small.batcher.road.sites) == 1
    assert (
        small.open(" second ")
        == small.open("./second")
        == small.open(str(runs / "second"))
        == "second"
    )
    assert len(small.batcher.road.sites) == 2


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
    assert small.origins(["road"]) == ["me/road"]
    assert asked == ["me/road"]
    for number in range(100):
        with pytest.raises(RoadError, match="not in the allowed folder"):
            small.open(f"some/body{number}")
    assert len(asked) == 32
    assert Handlers(small).open("me/road", [], [])[1] == ["road"]


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
            assert len(road.sites) <= 17
        assert "a@c0" in road.names
        assert "a@c1" not in road.names
    small.open("second")
    small.open("c1")
    assert "a@c0" not in road.names
    assert small.names(labels) == ["a", "b", "a@c0", "b@c0"]
    assert do_compose(do, "a@c0", labels) == expected
    assert "a@c0" in road.names
    assert {"a", "b"} < set(road.names)
    assert inside(small, "say", ["a@c2"], ["c2"])
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
        pytest.raises(RoadError, match="no road.json") as told,
        small.using([small.parse(f"a@{missing}", [missing])]),
    ):
        pass
    assert str(tmp_path) not in str(told.value)


def do_compose(do: Handlers, expression: str, labels: list[str]) -> str:
    *_, last = do.compose("say it", expression, 4, 0, 0, labels)
    assert "ri-error" not in last
    return last.partition("<p class")[0] + last.partition('"ri-text">')[2].partition("</p>")[0]


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
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(small.open("me/slow"))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    assert begun.wait(10)
    assert Handlers(small).answers("say", ["a"], 4)["tokens"] > 0
    assert small.open("second") == "second"
    going.set()
    for thread in threads:
        thread.join()
    assert found == ["slow"] * 6
    assert asked == ["me/slow"]
    assert len(small.batcher.road.sites) == 3


def test_opening_waits_for_the_batch_that_runs(small: Service) -> None:
    """And runs beside no other: the model's parts change between batches."""
    opened = threading.Event()
    with small.batcher.lock:
        thread = threading.Thread(target=lambda: (small.open("second"), opened.set()))
        thread.start()
        assert not opened.wait(0.3)
        assert len(small.batcher.road.sites) == 1
    assert opened.wait(10)
    thread.join()


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
    assert [each["composition"] for each in record["answers"]] == ["a + b"]


def test_unexpected_errors_are_one_neutral_line(
    small: Service, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    do = Handlers(small)

    def broken(*_: Any, **__: Any) -> Any:
        raise KeyError("/home/somebody/token")

    monkeypatch.setattr(small, "parse", broken)
    monkeypatch.setattr(small.batcher.road, "add_checkpoint", broken)
    with caplog.at_level(logging.ERROR, "roadint.demo"):
        told = [
            next(do.compose("say", "a", 4, 0, 0, [])),
            next(do.compare("say", ["a"], "", 4, 0, 0, True, []))[0],
        ]
        told += [
            do.look("say", ["a"], "", [])[0],
            do.by_text("a", [])[0],
            do.open("second", [], [])[0],
        ]
        with pytest.raises(gr.Error) as error:
            do.answers("say", ["a"])
    for each in (*told, str(error.value.message)):
        assert "something went wrong on the server" in each
        assert "somebody" not in each
    assert caplog.text.count("somebody") >= 6


def test_the_machines_folders_are_not_told(small: Service, tmp_path: Path) -> None:
    tensors = tmp_path / "runs" / "second" / "road.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-20])
    with pytest.raises(
        RoadError, match="second/road.safetensors is truncated or was altered"
    ) as told:
        small.open("second")
    assert str(tmp_path) not in str(told.value)
    small.batcher.road.model.config._name_or_path = str(tmp_path / "models" / "tiny")
    small.batcher.road.model.name_or_path = str(tmp_path / "models" / "tiny")
    assert small.status.startswith("tiny, ")
    assert Handlers(small).answers("say", ["a"], 4)["model"] == "tiny"


def test_everything_shown_is_escaped() -> None:
    """Whatever a prompt, an answer, a name or a checkpoint holds."""
    update = Update([HOSTILE, f"other {HOSTILE}"], 3, 1.0, done=True)
    names = ["none", f'"{HOSTILE}']
    token = (HOSTILE, 0.5)
    shown = [
        views.notice(HOSTILE, "error"),
        views.cards(names, update, highlight=True),
        views.cards(names, Update([HOSTILE, HOSTILE], waiting=2), highlight=False),
        views.prompt_tokens([HOSTILE, "x"], [0]),
        views.next_token_tables([NextToken(HOSTILE, [token], 0.5, [(HOSTILE, 0.5, 0.1)])]),
        views.lens_table([HOSTILE], [[token]], 0),
        views.picture(b"", f'"{HOSTILE}'),
        exports.as_markdown(
            exports.record(
                HOSTILE, ["none", "a"], update, AnswerSettings(), {"model": "m", "checkpoint": "c"}
            )
        ),
    ]
    for each in shown:
        assert "<img src=x" not in each
        assert '"<img' not in each


def test_the_layout_escapes_the_names_of_folders(small: Service) -> None:
    small.folder, small.first = Path("/x") / HOSTILE.replace("/", ""), f"/x/{HOSTILE}"
    shown = [
        str(each["props"].get("value"))
        for each in build_page(small).get_config_file()["components"]
    ]
    assert any("&lt;img" in each for each in shown)
    assert not any("<img" in each for each in shown)
