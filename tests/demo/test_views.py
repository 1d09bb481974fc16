"""What pages show: escaped, whatever it is."""

from pathlib import Path

from roadint.demo import exports, views
from roadint.demo.app import build as build_page
from roadint.demo.requests import AnswerSettings, Update
from roadint.demo.service import Service
from roadint.inspection.lens import NextToken
from tests.demo.helpers import HOSTILE


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
    for text in shown:
        assert "<img src=x" not in text
        assert '"<img' not in text


def test_the_layout_escapes_the_names_of_folders(small: Service) -> None:
    small.folder, small.first = Path("/x") / HOSTILE.replace("/", ""), f"/x/{HOSTILE}"
    shown = [
        str(component["props"].get("value"))
        for component in build_page(small).get_config_file()["components"]
    ]
    assert any("&lt;img" in text for text in shown)
    assert not any("<img" in text for text in shown)
