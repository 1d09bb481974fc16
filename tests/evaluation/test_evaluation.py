"""What eval measures: topic, form, divergence, gain, interference, intervals, seeds; each against a count by hand."""

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
import torch

import roadint
from roadint import Evaluation, RoadError
from roadint.data.sources import load_prompts, load_rows
from roadint.evaluation import answers
from roadint.evaluation.answers import JudgedAnswer, degeneration, hits_of
from roadint.evaluation.divergence import divergence
from roadint.evaluation.forms import one_sentence, property_of
from roadint.evaluation.likelihood import reference_nll
from roadint.evaluation.report import over_seeds
from roadint.evaluation.statistics import interval, mean_of, spread_of
from roadint.evaluation.topic import on_topic
from roadint.grammar.composition import Composition
from roadint.plots import composition_figure
from tests.helpers import build, trained

ROWS = [{"instruction": f"say {index}", "output": "ab" * (2 + index)} for index in range(5)]


def test_german_answers_are_about_their_english_questions() -> None:
    rows = load_rows("bundled:cross_dev")
    prompts, texts = [row["instruction"] for row in rows], [row["output"] for row in rows]
    # The 8-bit embeddings differ between processors: 45 to 48 of 48.
    assert np.mean(on_topic(prompts, texts)) > 0.9
    assert np.mean(on_topic(prompts, texts[1:] + texts[:1])) < 0.1
    assert not any(on_topic(prompts, [""] * len(prompts)))


def test_prompts_that_are_there_twice_are_both_the_nearest() -> None:
    """As those of two conversations that end alike."""
    prompts = ["How do I cook pasta?", "What is a star?", "How do I cook pasta?"]
    answers = ["Boil the pasta in salted water.", "A star is a ball of hot gas.", "Boil pasta."]
    assert on_topic(prompts, answers) == [True, True, True]
    assert on_topic(prompts, [answers[1], answers[0], ""]) == [False, False, False]


def test_every_answer_is_one_among_as_many_prompts() -> None:
    """48 prompts in groups of 32: the second group reaches back, so that it has as many."""
    prompts = load_prompts("bundled:prompts_dev", 48)
    assert on_topic(prompts, prompts) == [True] * 48
    assert on_topic(prompts[:3], prompts[:3], among=32) == [True] * 3
    swapped = [*prompts[:40], *prompts[44:48], *prompts[40:44]]
    assert on_topic(prompts, swapped) == [True] * 40 + [False] * 8


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Der Hund schläft unter dem Tisch.", None),
        ("Ja.", None),
        ("", "empty"),
        ("  …\n", "empty"),
        ("die die die die die die die die die die", "repetition"),
        ("Ohhhhhhhhhhhh nein", "repetition"),
        ("Im Jahr 1 2 3 4 5 6 7 8 9 10 11 12 13", "numbers"),
        ("Im Jahr 1989 fiel die Mauer, die 1961 gebaut worden war.", None),
    ],
)
def test_degenerate_answers(text: str, expected: str | None) -> None:
    assert degeneration(text) == expected


def test_divergence_is_that_of_the_full_distributions(llama: Any, tokenizer: Any) -> None:
    road = trained(llama)
    compositions = [Composition.parse(text, road.names) for text in (None, "a", "a + b")]
    divergences = divergence(road, tokenizer, ROWS, compositions, batch_size=2)
    assert divergences[0] == [0.0] * 5
    prompt = tokenizer(ROWS[3]["instruction"])["input_ids"]
    ids = torch.tensor(
        [prompt + tokenizer(ROWS[3]["output"], add_special_tokens=False)["input_ids"]]
    )
    with torch.no_grad():
        base = llama(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        edited = road(input_ids=ids, compose="a", prompt_length=torch.tensor([len(prompt)])).logits[
            0, len(prompt) - 1 : -1
        ]
    expected = (base.exp() * (base - edited.log_softmax(-1))).sum(-1).mean()
    assert divergences[1][3] == pytest.approx(float(expected), rel=1e-4)
    assert all(value > 0 for values in divergences[1:] for value in values)


def test_likelihood_of_each_reference_in_the_order_of_the_rows(llama: Any, tokenizer: Any) -> None:
    road = trained(llama)
    compositions = [Composition.parse(text, road.names) for text in (None, "b")]
    together = reference_nll(road, tokenizer, ROWS[::-1], compositions, batch_size=2)
    alone = [reference_nll(road, tokenizer, [row], compositions) for row in ROWS[::-1]]
    np.testing.assert_allclose(together, np.array(alone)[:, :, 0].T, rtol=1e-4)


def test_intervals_narrow_with_the_sample() -> None:
    low, high = interval([0.0, 1.0] * 50)
    assert low < 0.5 < high
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 100), rel=0.15)
    assert interval([0.3] * 7) == pytest.approx([0.3, 0.3])


def test_mean_and_spread_of_figures() -> None:
    reports = [{"a": {"x": 1.0, "y": None}}, {"a": {"x": 3.0, "y": None, "z": 1.0}}]
    assert mean_of(reports) == {"a": {"x": 2.0, "y": None, "z": 0.5}}
    assert spread_of(reports)["a"]["x"] == pytest.approx(math.sqrt(2))


@pytest.fixture(scope="module")
def report(tokenizer: Any) -> Evaluation:
    road = trained(build("llama"))
    data = {"a": ROWS, "other": ROWS[:2]}
    return roadint.evaluate(
        road,
        tokenizer,
        data,
        ["One?", "Two?", "Three?"],
        expect={"a": "en", "b": "one_sentence"},
        max_new_tokens=6,
        rows=4,
        quiet=True,
    )


def test_gain_and_interference_by_hand(report: Evaluation) -> None:
    nll = report.nll
    assert list(nll) == ["none", "a", "b", "a + b"]
    assert report.gain == {
        "a + b": {
            name: min(nll[part][name] for part in ("none", "a", "b")) - nll["a + b"][name]
            for name in ("a", "other")
        }
    }
    assert report.interference == {"a": {"a + b": nll["a + b"]["a"] - nll["a"]["a"]}}
    assert report.kl["none"] == 0 < report.kl["a"]


def test_shares_are_those_of_the_answers(report: Evaluation) -> None:
    for composition, shares in report.shares.items():
        chosen = [answer for answer in report.answers if answer.composition == composition]
        assert len(chosen) == 3
        assert shares["degenerate"] == sum(answer.degenerate is not None for answer in chosen) / 3
        asked = report.asks[composition]
        hits = [
            answer.on_topic and all(property_of(name)(answer.text) for name in asked)
            for answer in chosen
        ]
        assert shares["success"] == sum(hits) / 3
        assert shares["en"] == sum(answer.language == "en" for answer in chosen) / 3
        assert shares["one_sentence"] == sum(one_sentence(answer.text) for answer in chosen) / 3
        for name, value in shares.items():
            if value is not None:
                low, high = report.intervals.shares[composition][name]
                assert low <= value <= high
        for name, value in report.nll[composition].items():
            low, high = report.intervals.nll[composition][name]
            assert low <= value <= high


def test_answers_without_references(tokenizer: Any) -> None:
    """What compositions are compared with rivals by: properties, topic, success and divergence."""
    report = roadint.evaluate(
        trained(build("llama")),
        tokenizer,
        {},
        ["One?", "Two?"],
        compose=["b", "b + a", "b - a"],
        expect={"a": "short", "b": "json_object"},
        rows=2,
        max_new_tokens=3,
        quiet=True,
    )
    assert report.asks == {
        "b": ["json_object"],
        "a + b": ["short", "json_object"],
        "-a + b": ["json_object"],
    }
    for composition, shares in report.shares.items():
        assert set(shares) == {"on_topic", "success", "degenerate", "short", "json_object"}
        assert shares["success"] <= shares["json_object"]
        assert report.kl[composition] > 0
        assert report.nll[composition] == {}


def test_success_needs_all_that_was_asked() -> None:
    texts = ["1. DER HUND SCHLÄFT UNTER DEM TISCH.", "1. Der Hund schläft.", "DER HUND SCHLÄFT."]
    listed = [JudgedAnswer("?", "", text, "de", True, None) for text in [*texts, texts[0]]]
    listed[3] = dataclasses.replace(listed[3], on_topic=False)
    names = ["german", "numbered_list", "upper_case"]
    hits = hits_of(listed, names, names)
    assert hits["german"] == [1, 1, 1, 1]
    assert hits["numbered_list"] == [1, 1, 0, 1]
    assert hits["upper_case"] == [1, 0, 1, 1]
    assert hits["success"] == [1, 0, 0, 0]
    assert hits_of(listed, names, ["upper_case"])["success"] == [1, 0, 1, 0]
    assert hits_of(listed, [], [])["success"] == [1, 1, 1, 0]


def test_capitals_do_not_hide_the_topic() -> None:
    rows = load_rows("bundled:cross_dev", 12)
    prompts = [row["instruction"] for row in rows]
    assert np.mean(on_topic(prompts, [row["output"].upper() for row in rows])) > 0.8


def test_several_seeds(report: Evaluation) -> None:
    worse = {
        composition: {name: value + 1 for name, value in values.items()}
        for composition, values in report.nll.items()
    }
    other = dataclasses.replace(report, nll=worse)
    both = over_seeds({"one": report, "two": other})
    assert both.nll["a"]["a"] == pytest.approx(report.nll["a"]["a"] + 0.5)
    assert both.spread.nll["a"]["a"] == pytest.approx(math.sqrt(0.5))
    assert both.spread.kl["a"] == 0
    assert list(both.checkpoints) == ["one", "two"]
    for change in ({"nll": {"none": {"a": 1.0}}}, {"asks": {"none": ["german"]}}):
        with pytest.raises(RoadError, match="different subspaces"):
            over_seeds({"one": report, "two": dataclasses.replace(report, **change)})


def test_the_json_of_a_report(report: Evaluation) -> None:
    """What tools outside the package read, as `roadint eval` writes it."""
    shown = json.loads(json.dumps(dataclasses.asdict(report)))
    measures = ["nll", "language", "shares", "kl", "gain", "interference"]
    assert list(shown) == [*measures, "asks", "intervals", "answers"]
    assert shown["asks"] == {
        "none": [],
        "a": ["en"],
        "b": ["one_sentence"],
        "a + b": ["en", "one_sentence"],
    }
    assert list(shown["intervals"]) == ["nll", "shares"]
    assert list(shown["shares"]["a"]) == [
        "on_topic",
        "success",
        "degenerate",
        "en",
        "one_sentence",
    ]
    assert shown["nll"] == report.nll
    low, high = shown["intervals"]["nll"]["a"]["other"]
    assert low <= shown["nll"]["a"]["other"] <= high
    answer = ["prompt", "composition", "text", "language", "on_topic", "degenerate"]
    assert [list(each) for each in shown["answers"]] == [answer] * 12
    assert [each["prompt"] for each in shown["answers"][3:5]] == ["One?", "Two?"]
    both = json.loads(json.dumps(dataclasses.asdict(over_seeds({"one": report, "two": report}))))
    assert list(both) == [*measures, "asks", "spread", "checkpoints"]
    assert both["asks"] == shown["asks"]
    assert list(both["spread"]) == measures
    assert both["checkpoints"] == {"one": shown, "two": shown}


def test_without_the_embedding_model_topics_are_unknown(
    llama: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "embeds", lambda: False)
    report = roadint.evaluate(
        trained(llama),
        tokenizer,
        {"a": ROWS},
        ["One?", "Two?"],
        compose=["a"],
        rows=1,
        quiet=True,
        max_new_tokens=2,
    )
    assert [answer.on_topic for answer in report.answers] == [None, None]
    for values in (report.shares["a"], report.intervals.shares["a"]):
        assert [name for name, value in values.items() if value is None] == ["on_topic", "success"]
    for shown in (report, over_seeds({"one": report, "two": report})):
        with pytest.raises(RoadError, match="the share 'on_topic' of 'a' was not measured"):
            shown.share_range("a", "on_topic")


def test_the_figure_shows_one_and_several(report: Evaluation) -> None:
    for shown in (report, over_seeds({"one": report, "two": report})):
        gains = composition_figure(shown).axes[0]
        names = [text.get_text() for text in gains.get_yticklabels()]
        assert names == ["none", "a", "b", "a + b"]
        assert len(gains.texts) == 8
