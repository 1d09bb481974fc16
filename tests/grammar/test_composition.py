"""Expressions over subspace names."""

import math
import time
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from roadint.errors import RoadError
from roadint.grammar.composition import Composition, parse_rows
from roadint.grammar.subspace import Partition

NAMES = ["german", "english", "french"]


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        (None, {}),
        ("none", {}),
        ("german", {"german": 1}),
        ("german + english", {"german": 1, "english": 1}),
        ("english+german", {"german": 1, "english": 1}),
        ("0.5*german - english", {"german": 0.5, "english": -1}),
        ("-2 * german", {"german": -2}),
        (".5*german+1e-1*french", {"german": 0.5, "french": 0.1}),
        ("all", {"german": 1, "english": 1, "french": 1}),
        ("all - german", {"english": 1, "french": 1}),
        ("german + german", {"german": 2}),
        ("german - german", {}),
        ({"german": 0.5}, {"german": 0.5}),
        ({"german": 0}, {}),
    ],
)
def test_expressions(text: object, terms: dict[str, float]) -> None:
    assert dict(Composition.parse(text, NAMES).terms) == terms


@given(st.dictionaries(st.sampled_from(NAMES), st.integers(-8, 8).map(lambda n: n / 4)))
def test_text_round_trip(strengths: dict[str, float]) -> None:
    composition = Composition.parse(strengths, NAMES)
    assert Composition.parse(str(composition), NAMES) == composition


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("germn", "unknown subspace 'germn'.*'german', 'english', 'french'; did you mean 'german'"),
        ("german english", "not understood at 'english'"),
        ("german +", r"not understood at '\+'"),
        ("german * 2", r"not understood"),
        ("", "not understood"),
        ({"german": float("nan")}, "no finite number"),
        ({"german": "x"}, "no finite number"),
        (3, "composition 3 is not understood"),
    ],
)
def test_bad_expressions_are_named(text: object, message: str) -> None:
    with pytest.raises(RoadError, match=message):
        Composition.parse(text, NAMES)


def test_rows() -> None:
    assert parse_rows("german", 2, NAMES) == [Composition.parse("german", NAMES)] * 2
    assert [str(row) for row in parse_rows([None, "all"], 2, ["a", "b"])] == ["none", "a + b"]
    with pytest.raises(RoadError, match="3 compositions for 2 rows"):
        parse_rows(["german"] * 3, 2, NAMES)


@given(st.dictionaries(st.sampled_from(NAMES), st.floats(-1000, 1000)))
def test_text_is_the_same_to_the_last_digit(strengths: dict[str, float]) -> None:
    composition = Composition.parse(strengths, NAMES)
    assert dict(composition.terms) == {
        name: strength for name, strength in strengths.items() if strength
    }
    assert Composition.parse(str(composition), NAMES) == composition


@pytest.mark.parametrize(
    ("strengths", "text"),
    [
        ({"german": 0.1 + 0.2}, "0.30000000000000004*german"),
        ({"german": 1e-7}, "1e-07*german"),
        ({"german": -2, "english": 1}, "-2*german + english"),
    ],
)
def test_texts(strengths: dict[str, float], text: str) -> None:
    assert str(Composition.parse(strengths, NAMES)) == text


def test_the_order_is_that_of_the_names_whatever_they_map_to() -> None:
    specs = {
        "german": "[d/2, d)",
        "english": "[0, d/2)",
    }  # sorted by these, english would come first
    assert [name for name, _ in Composition.parse("english + german", specs).terms] == [
        "german",
        "english",
    ]
    assert Composition.parse("english + german", iter(specs)) == Composition.parse(
        "all", list(specs)
    )


@pytest.mark.parametrize(
    "strength",
    [0.5, Fraction(1, 2), np.float32(0.5), np.float64(0.5), np.array(0.5), torch.tensor(0.5)],
)
def test_real_numbers_of_every_kind(strength: Any) -> None:
    assert Composition.parse({"german": strength}, NAMES).terms == (("german", 0.5),)


@pytest.mark.parametrize(
    "strength",
    [
        *(
            10**400,
            Fraction(10**400),
            math.inf,
            True,
            None,
            [1],
            1j,
            "1",
            np.bool_(True),
            np.array([0.5]),
            np.float64("nan"),
        ),
        *(
            torch.tensor(True),
            torch.tensor([0.5]),
            torch.tensor(1j),
            torch.tensor(0.5, requires_grad=True),
        ),
        torch.empty((), device="meta"),
    ],
)
def test_what_is_no_finite_real_number_is_refused(strength: Any) -> None:
    with pytest.raises(RoadError, match="of 'german' is no finite number"):
        Composition.parse({"german": strength}, NAMES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1e308*german + 1e308*german", "no finite number"),
        ("1e400*german", "no finite number"),
        ("all + 1e400*german - 1e400*german", "no finite number"),
        (
            "600*german + 600*german",
            "strength 1200.0 of 'german' is too large: expected at most 1,000",
        ),
        ({"german": -1001}, "too large"),
        (Composition((("german", math.inf),)), "no finite number"),
        (Composition((("germn", 1.0),)), "unknown subspace 'germn'"),
        (Composition((("german", "x"),)), "no finite number"),
        (Composition(5), "not understood"),
        (Composition((5,)), "not understood"),
        ({1: 0.5}, "name 1 .* is no text"),
        ({None: 1}, "name None .* is no text"),
        ("1_0*german", "not understood"),
        ("٣*german", "not understood"),
        ("german\0", "not understood"),
        ("german@", "not understood at '@'"),
        (" " * 20_000 + "german", "20,006 characters: expected at most"),
        (b"german", "not understood"),
    ],
)
def test_what_has_no_meaning_is_refused(text: Any, message: str) -> None:
    with pytest.raises(RoadError, match=message):
        Composition.parse(text, NAMES)


def test_strengths_are_checked_after_they_are_summed() -> None:
    assert Composition.parse("2000*german - 1500*german", NAMES).terms == (("german", 500.0),)


@pytest.mark.parametrize(
    "compose", [{"german", "english"}, 5, iter(["german", "english"]), (name for name in NAMES[:2])]
)
def test_one_a_row_is_a_list_or_a_tuple(compose: Any) -> None:
    with pytest.raises(RoadError, match="not understood"):
        parse_rows(compose, 2, NAMES)
    assert parse_rows(("german", None), 2, NAMES) == parse_rows(["german", "none"], 2, NAMES)


@pytest.mark.parametrize("names", ["german", 5, [1], None])
def test_names_are_listed(names: Any) -> None:
    with pytest.raises(RoadError, match="expected"):
        Composition.parse("german", names)


@pytest.mark.parametrize(
    "text", [" " * 15_000 + "!", "1" * 15_000, "a+" * 7_000, "a@" * 7_000, "1e" * 7_000]
)
def test_time_grows_with_the_length_alone(text: str) -> None:
    started = time.perf_counter()
    with pytest.raises(RoadError):
        Composition.parse(text, NAMES)
    assert time.perf_counter() - started < 0.5


def test_names_of_a_mapping_are_those_of_text() -> None:
    """The same names, those of checkpoints and "all" among them, and names that map to something."""
    partition = Partition({"german": "[0, d/2)", "english": "[d/2, d)"}, 16)
    assert Composition.parse({"english": 1, "german": 0.5}, partition) == Composition.parse(
        "0.5*german + english", partition
    )
    loaded = dict.fromkeys(["german@a", "english@a", "german@b"], "anything")
    for mapping, text in (
        ({"a": 0.5}, "0.5*german@a + 0.5*english@a"),
        ({"german@b": -1, "a": 2}, "2*a - german@b"),
        ({"all": 0.5, "german@a": 0.5}, "german@a + 0.5*english@a + 0.5*german@b"),
        ({"all": 1, "b": -1}, "a"),
        ({}, "none"),
    ):
        assert Composition.parse(mapping, loaded) == Composition.parse(text, loaded)
    for mapping, message in (
        ({"germn@a": 1}, "unknown subspace 'germn@a'.*did you mean 'german@a'"),
        ({"german": 1}, "unknown subspace 'german'"),
        ({"none": 1}, "unknown subspace 'none'"),
        ({"german@a + b": 1}, "unknown subspace"),
        ({"": 1}, "unknown subspace ''"),
    ):
        with pytest.raises(RoadError, match=message):
            Composition.parse(mapping, loaded)


PIECES = [
    *NAMES,
    "a@b",
    "all",
    "none",
    "+",
    "-",
    "*",
    " ",
    "0.5",
    "1e3",
    "1e-7",
    "1e400",
    ".",
    "@",
    "e5",
    "_",
    "(",
    "\0",
    "²",
    "٣",
    "\n",
]


@given(st.lists(st.sampled_from(PIECES), max_size=9).map("".join) | st.text())
def test_any_text_is_a_composition_or_refused(text: str) -> None:
    try:
        composition = Composition.parse(text, NAMES)
    except RoadError:
        return
    assert Composition.parse(str(composition), NAMES) == composition
