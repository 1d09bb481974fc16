"""Expressions over subspace names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roadint.composition import Composition, parse_rows
from roadint.errors import RoadError

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
