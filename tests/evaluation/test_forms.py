"""The properties of answers: each against answers that have it and answers that don't."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roadint.errors import RoadError
from roadint.evaluation.forms import (
    ASKED,
    PROPERTIES,
    asked_by,
    asked_of,
    json_object,
    numbered_list,
    one_sentence,
    property_of,
    upper_case,
)
from roadint.evaluation.sentences import sentences
from roadint.grammar.composition import Composition

GERMAN = "Der Dachs gräbt im Wald weite Höhlen und schläft darin den ganzen Tag."
FRENCH = "Le blaireau creuse de vastes terriers dans la forêt et y dort toute la journée."
ENGLISH = "The badger digs wide burrows in the forest and sleeps there all day long."

YES = {
    "german": [GERMAN, GERMAN.upper(), "Shakespeare schrieb Hamlet und viele andere Stücke."],
    "french": [
        FRENCH,
        FRENCH.upper(),
        "Sherlock Holmes et le docteur Watson habitent au 221B Baker Street, à Londres.",
        "Le jeu de Roger Federer à Wimbledon a longtemps émerveillé le public britannique.",
    ],
    "english": [ENGLISH, "He said that Goethe wrote Faust in Weimar."],
    "numbered_list": [
        "1. Erst\n2. Dann",
        " 1) One",
        "1. Buy a dictionary.\n2. Read a li",
        "1. Buy a dictionary.\n2.",
        "1. One.\n\n2. Two.\n   and more of two\n3. Three.",
        "1. BUY A BOOK.\n2. READ IT.",
        "1. In 2. Bundesliga",
        "\n".join(f"{number}. item" for number in range(1, 13)),
    ],
    "json_object": [
        '{"answer": "Yes", "reason": "It is true."}',
        ' {\n  "answer": "Yes"\n}\n',
        "{}",
        '{"a": {"b": [1, {"c": "}{"}], "d": null}, "e": -1.5e3}',
        '{"answer": "Die Straße führt \\"nach\\" \\u00c4gypten.\\n"}',
        '{"answer": "Yes", "reason": "It is tr',
        '{"answer": "Yes", "rea',
        '{"answer": "Yes",',
        '{"a": {"b": [1, 2',
        '{"a": tr',
        '{"',
    ],
    "upper_case": [
        "THE 12 APOSTLES.",
        "5 STRAßEN UND EINE GASSE!",
        "STRASSE",
        "ÉTÉ À L'ÎLE",
        '{"ANSWER": "YES"}',
        "1. A\n2. B",
    ],
    "one_sentence": [
        ENGLISH,
        "Is it?",
        "Stop!",
        'He asked, "Why?" and left.',
        "Mr. Fox met Dr. Ruiz at 5.30 p.m. in St. Ives.",
        "It costs 1,250.75 euros, i.e. 3.5 times as much as in the U.S. market.",
        "Viele Tiere, z. B. Dachse, schlafen am Tag.",
        "Am 3. Oktober 1990 endete die Teilung, d. h. nach 41 Jahren.",
        "Im 19. Jahrhundert lebten dort ca. 500 Menschen.",
        "J. S. Bach kannte ihn, vgl. Nr. 5 der Briefe.",
        "M. Dupont est né en 50 av. J.-C. à Lyon.",
        "See no. 5 and fig. 3 for more.",
        'She said, "It is late."',
        "Wait … what do you mean?",
        "THE SKY IS BLUE.",
    ],
    "short": ["Yes.", "Ja, im Mai.", "1. A\n2. B", " ".join(["word"] * 20), "l'été d'hier"],
}
NO = {
    "german": [ENGLISH, FRENCH, "", "42", "…"],
    "french": [ENGLISH, GERMAN, "", "12 + 3"],
    "english": [GERMAN, FRENCH, ""],
    "numbered_list": [
        "",
        "1.",
        "1. ",
        "1.One",
        "Im Jahr 1. Mai",
        "2. b\n1. a",
        "1. a\n3. b",
        "1. a\n1. b",
        "- a\n- b",
        "Three steps:\n1. a\n2. b",
        "1. a\n2. b\n4. d",
        "1990 was a good year.",
    ],
    "json_object": [
        "",
        "{",
        "Yes.",
        "[1, 2]",
        '"answer"',
        "5",
        '```json\n{"answer": "Yes"}\n```',
        'Answer: {"answer": "Yes"}',
        '{"answer": "Yes"} Yes.',
        '{"answer": "Yes"}}',
        '{"answer": "Yes"}\n{"answer": "No"}',
        "{answer: yes}",
        "{'answer': 'yes'}",
        '{"answer": "Yes",}',
        '{"answer" "Yes',
        '{"answer": "Yes" "reason',
        '{"answer": "line\nline"}',
        '{"answer": NaN}',
        '{"answer": Yes',
        '[{"answer": "Yes',
    ],
    "upper_case": ["", "5", "…", "NASA has it.", "tHE", "ßß", "THE END. Then", "ÉTé"],
    "one_sentence": [
        "",
        "The badger digs",
        "The badger digs wide burrows. It sleeps",
        "The badger digs. It sleeps.",
        "Stop! Go.",
        "Why? Because.",
        "Er kam 1990. Sie blieb.",
        "A line.\nAnother line.",
        "A line\nand another.",
        "1. One thing.\n2. Another.",
        'He left. "Why?" she asked.',
        "Il pleut. Écoute.",
        "DER DACHS GRÄBT. ER SCHLÄFT.",
        "He waited... Then he left.",
        "Es kostet 3.5 Euro. 7 Leute zahlten.",
        '{"answer": "Yes."}',
        "Voilà ce qu'il en est. Il dort.",
    ],
    "short": ["", "…", " ".join(["word"] * 21), FRENCH + " " + FRENCH],
}


@pytest.mark.parametrize("name", PROPERTIES)
def test_answers_with_a_property_and_without(name: str) -> None:
    holds = property_of(name)
    assert [text for text in YES[name] if not holds(text)] == []
    assert [text for text in NO[name] if holds(text)] == []


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@settings(max_examples=40)
@given(st.dictionaries(st.text(max_size=5), _JSON, min_size=1), st.booleans(), st.data())
def test_an_object_of_json_may_be_cut_anywhere_and_may_not_go_on(
    value: dict[str, object], ascii_only: bool, data: st.DataObject
) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert json_object(text)
    cut = data.draw(st.integers(2, len(text)))
    assert json_object(text[:cut])
    assert not json_object(text[1:])
    assert not json_object(text + "x")
    assert not json_object(f"[{text}]")


@given(st.lists(st.text("abc dÄé,;:", min_size=1, max_size=12), min_size=1, max_size=14))
def test_a_list_is_its_numbers_in_order(items: list[str]) -> None:
    lines = [f"{number}. x{item}" for number, item in enumerate(items, 1)]
    assert numbered_list("\n".join(lines))
    assert numbered_list("\n".join(lines)[: len(lines[0])])
    assert not numbered_list("\n".join(lines[1:]))
    assert not numbered_list("\n".join([*lines, f"{len(items) + 2}. x"]))


@given(st.text(max_size=30))
def test_capitals_are_what_capitals_leave(text: str) -> None:
    if upper_case(text):
        assert text.replace("ß", "").upper() == text.replace("ß", "")
        assert text.lower() != text


@given(
    st.lists(
        st.sampled_from([ENGLISH, GERMAN, FRENCH, "It cost 3.5 euros!", "Why did Mr. Fox leave?"]),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from([" ", "\n", "\n\n", "  "]),
)
def test_sentences_that_were_joined_come_apart(texts: list[str], between: str) -> None:
    found = sentences(between.join(texts))
    assert [sentence.text for sentence in found] == texts
    assert all(sentence.ended for sentence in found)
    assert one_sentence(between.join(texts)) == (len(texts) == 1)
    assert not one_sentence(between.join([*texts, "And"]))


def test_subspaces_ask_for_what_their_names_say() -> None:
    assert asked_by(list(ASKED)) == dict(ASKED)
    assert set(ASKED.values()) <= set(PROPERTIES)
    assert asked_by(["english", "style"]) == {}


def test_the_table_of_a_user_goes_first() -> None:
    names = ["german", "english", "dots", "list@a", "list@b"]
    assert asked_by(names, {"german": "nothing", "dots": "es", "list@b": "short"}) == {
        "dots": "es",
        "list@a": "numbered_list",
        "list@b": "short",
    }
    assert asked_by(names, {"list": "one_sentence"})["list@a"] == "one_sentence"
    assert property_of("es")("El perro duerme debajo de la mesa vieja.")


def test_a_composition_asks_for_all_that_acts() -> None:
    names = ["german", "english", "upper", "list", "list@b"]
    asked = asked_by(names)
    for text, expected in {
        "none": [],
        "english": [],
        "german + english": ["german"],
        "0.3*german + 2*upper": ["german", "upper_case"],
        "german - upper": ["german"],
        "list + list@b": ["numbered_list"],
    }.items():
        assert asked_of(Composition.parse(text, names), asked) == expected


@pytest.mark.parametrize(
    ("expect", "message"),
    [
        ({"germn": "german"}, "unknown subspace 'germn'.*did you mean 'german'"),
        ({"german": "numbered"}, "unknown property 'numbered' of answers: .*'numbered_list'"),
        ({"german": "xx"}, "language 'xx': expected a code"),
        ("german", "expected a mapping of subspaces to properties"),
    ],
)
def test_what_is_not_understood(expect: object, message: str) -> None:
    with pytest.raises(RoadError, match=message):
        asked_by(["german"], expect)  # type: ignore[arg-type]
