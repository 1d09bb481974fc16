"""What a subspace may ask of answers, such that a program can tell: their language and form.

A property is a function of the text of an answer. An answer has a length at which it is cut, so one
that is cut may have a property whose end is missing: a list without its last items, an object
without its closing brace. "one_sentence" and "short" are what such an answer has not.

Some can't hold at once: two languages; "json_object" with "numbered_list" or "one_sentence".
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from pydantic_core import from_json

from roadint.errors import RoadError, check_known, did_you_mean, listing, quoted
from roadint.evaluation.language import check_language, language_of
from roadint.evaluation.sentences import sentences
from roadint.grammar.composition import Composition

Property = Callable[[str], bool]

SHORT: Final = 20
"""The most words of a "short" answer."""

ASKED: Final[Mapping[str, str]] = {
    "german": "german",
    "french": "french",
    "list": "numbered_list",
    "json": "json_object",
    "upper": "upper_case",
    "sentence": "one_sentence",
    "short": "short",
}
"""What the subspaces of these names ask for; others ask for nothing."""

_NOTHING = "nothing"


def in_language(code: str) -> Property:
    """The property of being in a language.

    Args:
        code: Of ISO 639-1.

    Examples:
        >>> in_language("fr")("Le chien dort sous la vieille table.")
        True
    """
    return lambda text: language_of(text) == code


def numbered_list(text: str) -> bool:
    """Whether an answer is a numbered list: its lines begin with 1., 2., … or 1), 2), …

    One that was cut after its first number counts.

    Examples:
        >>> numbered_list("1. Buy a dictionary.")
        True
    """
    numbers = [int(number) for number in re.findall(r"^\s*(\d+)[.)]\s", text, flags=re.MULTILINE)]
    return bool(re.match(r"\s*1[.)]\s+\S", text)) and numbers == list(range(1, len(numbers) + 1))


def json_object(text: str) -> bool:
    """Whether an answer is an object of JSON, by itself: one in a code fence is not.

    One that was cut inside the object counts, if it has begun with a key and can be continued to an
    object. (That the model ended it there can't be told from the text.)

    Examples:
        >>> json_object('{"answer": "Yes", "reason": "It is tru')
        True
    """
    try:
        return isinstance(from_json(text.strip(), allow_inf_nan=False), dict)
    except ValueError as error:
        # A parser that only misses the end has read the beginning of JSON.
        return bool(re.match(r'\s*{\s*"', text)) and str(error).startswith("EOF ")


def upper_case(text: str) -> bool:
    """Whether an answer has capital letters and no small ones; ß, which often has none, may stand.

    Examples:
        >>> upper_case("5 STRAßEN!"), upper_case("5"), upper_case("NASA has it.")
        (True, False, False)
    """
    return text.replace("ß", "").isupper()


def one_sentence(text: str) -> bool:
    """Whether an answer is exactly one sentence (`roadint.evaluation.sentences`), with its end.

    Examples:
        >>> one_sentence("Dr. Ruiz paid 3.50 euros."), one_sentence("Dr. Ruiz paid 3")
        (True, False)
    """
    found = sentences(text)
    return len(found) == 1 and found[0].ended


def short(text: str) -> bool:
    """Whether an answer has at least one word and at most twenty.

    Examples:
        >>> short("Yes, in May.")
        True
    """
    return 1 <= len(re.findall(r"\w+(?:['’-]\w+)*", text)) <= SHORT


PROPERTIES: Final[Mapping[str, Property]] = {
    "german": in_language("de"),
    "french": in_language("fr"),
    "english": in_language("en"),
    "numbered_list": numbered_list,
    "json_object": json_object,
    "upper_case": upper_case,
    "one_sentence": one_sentence,
    "short": short,
}
"""Name → property. Beside them, the code of a language is the name of a property."""


def property_of(name: str) -> Property:
    """The property of a name.

    Args:
        name: One of `PROPERTIES`, or the code of a language such as "es".

    Raises:
        RoadError: for another name.
    """
    if isinstance(name, str) and name in PROPERTIES:
        return PROPERTIES[name]
    if isinstance(name, str) and len(name) == 2:
        check_language(name)
        return in_language(name)
    raise RoadError(
        f"unknown property {quoted(name)} of answers: expected one of {listing(PROPERTIES)}, "
        f"or the code of a language such as 'es'{did_you_mean(name, PROPERTIES)}"
    )


def asked_by(names: Sequence[str], expect: Mapping[str, str] | None = None) -> dict[str, str]:
    """What the subspaces of a model ask of answers.

    Args:
        names: The subspaces.
        expect: Subspace → property, before `ASKED`; "nothing" for none. The name of a labelled
            subspace, "german@a", goes before the name without its label.

    Returns:
        Subspace → the name of its property; subspaces that ask for nothing are not in it.

    Raises:
        RoadError: where there is no such subspace or property.

    Examples:
        >>> asked_by(["german", "english", "dots"], {"dots": "numbered_list"})
        {'german': 'german', 'dots': 'numbered_list'}
    """
    if expect is not None and not isinstance(expect, Mapping):
        raise RoadError(
            f"expect {quoted(expect)}: expected a mapping of subspaces to properties of answers, "
            "such as {'german': 'german'}"
        )
    known = dict.fromkeys([*names, *map(_unlabelled, names)])
    for name, wanted in (expect or {}).items():
        check_known("subspace", name, known)
        if wanted != _NOTHING:
            property_of(wanted)
    table = {**ASKED, **(expect or {})}
    asked = {name: table.get(name, table.get(_unlabelled(name), _NOTHING)) for name in names}
    return {name: wanted for name, wanted in asked.items() if wanted != _NOTHING}


def asked_of(composition: Composition, asked: Mapping[str, str]) -> list[str]:
    """What a composition asks of answers: all that its subspaces do, where they are not subtracted.

    Args:
        composition: The composition.
        asked: What the subspaces ask for, from `asked_by`.

    Examples:
        >>> names = ["german", "list"]
        >>> asked_of(Composition.parse("german - list", names), asked_by(names))
        ['german']
    """
    wanted = [asked[name] for name, strength in composition.terms if strength > 0 and name in asked]
    return list(dict.fromkeys(wanted))


def _unlabelled(name: str) -> str:
    return name.partition("@")[0]
