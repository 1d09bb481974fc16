"""What the page is told: plain values, that its scripts put in place as texts."""

import json
import re
from pathlib import Path

import torch

import roadint.demo
from roadint.demo import exports, messages
from roadint.demo.app import build as build_page
from roadint.demo.look import inside
from roadint.demo.requests import AnswerSettings, Update
from roadint.demo.service import Service
from roadint.plots.style import COLOURS
from tests.demo.helpers import HOSTILE

STATIC = Path(roadint.demo.__file__).parent / "static"


def test_languages_are_told_when_answers_are_complete() -> None:
    update = Update(["Das ist ein Haus und ein Garten.", ""], tokens=7, seconds=2.0)
    told = json.loads(messages.answers(["a", "b"], update, 3))
    assert (told["languages"], told["done"], told["flight"]) == (None, False, 3)
    update.done = True
    assert json.loads(messages.answers(["a", "b"], update, 3))["languages"][0] == "de"


def test_a_subspace_has_the_colour_of_the_plots() -> None:
    assert messages.colours_of(["a", "b"]) == list(COLOURS[:2])
    assert len(messages.colours_of([str(number) for number in range(30)])) == 30


def test_a_record_has_what_was_asked() -> None:
    update = Update(["x"], tokens=7, seconds=2.0, done=True)
    record = exports.record(HOSTILE, ["a"], update, AnswerSettings(), {"model": "m"})
    assert (record["model"], record["prompt"], record["tokens"]) == ("m", HOSTILE, 7)


def test_scripts_make_no_markup_of_texts() -> None:
    """Whatever a prompt, an answer, a name or a checkpoint holds."""
    for path in STATIC.glob("*.js"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)
    for name in ("surface.html", "style.css"):  # Gradio would fill these in
        assert not re.search(r"\$\{|\{\{|\}\}", (STATIC / name).read_text(encoding="utf-8"))


def test_the_layout_holds_nothing_of_this_machine(small: Service) -> None:
    small.folder, small.first = Path("/x") / HOSTILE.replace("/", ""), f"/x/{HOSTILE}"
    shown = json.dumps(build_page(small).get_config_file(), default=str)
    assert "<img" not in shown
    assert "/x/" not in shown


def test_inside_is_what_the_composition_does(small: Service) -> None:
    none = inside(small, "say", "none", [])
    assert (none["kl"], none["sites"]) == (0, [])
    assert not any(token["layers"] for token in none["tokens"])
    assert none["lens"]["rows"][0]["tokens"] == none["lens"]["rows"][1]["tokens"]
    whole, half = (inside(small, "say", text, []) for text in ("a", "0.5*a"))
    assert whole["kl"] > 0
    assert [len(token["layers"]) for token in whole["tokens"]][-1] == len(whole["sites"])
    assert all(site["raw"] for site in whole["sites"])
    for site, weaker in zip(whole["sites"], half["sites"], strict=True):
        (part,), (other,) = site["parts"], weaker["parts"]
        assert (part["name"], part["label"], other["label"]) == ("a", "a", "0.5*a")
        assert max(part["blocks"]) < site["count"]
    edit = small.batcher.road.interventions[0]
    with torch.no_grad():  # a half of more than half a turn is no half of what it looks like
        edit.theta[0], edit.alpha[0] = 4.0, -0.25
    for text in ("a", "0.5*a"):
        (part,) = inside(small, "say", text, [])["sites"][0]["parts"]
        scales, angles = (torch.tensor(part[name])[:, 0] for name in ("scales", "angles"))
        turned = edit.rotation(edit.strengths([small.parse(text, [])])).u[0, part["blocks"]]
        torch.testing.assert_close(torch.polar(scales, angles), turned.detach())
    both = inside(small, "say", "a - b", [])["sites"][0]["parts"]
    assert [part["label"] for part in both] == ["a", "-1*b"]
