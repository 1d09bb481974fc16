"""The sentences of an answer, in the languages of European letters."""

import re
from dataclasses import dataclass

# A full stop, question or exclamation mark or ellipsis, and what closes behind it.
_END = re.compile(r"(?:\.{3,}|[.!?…]+)[\"'”’“»›)\]]*")
_CLOSED = re.compile(_END.pattern + r"\Z")
# What a sentence begins with: a capital letter or a number, perhaps after an opening mark.
_NEXT = re.compile(r"\s+[\"'„“‘«‹(\[¿¡–—-]*\s?(\w)")
_LAST_WORD = re.compile(r"[\w.-]+\Z")
# Words before a full stop that does not end a sentence; those that often do, such as etc., are not
# here. Single letters (z. B., J. S. Bach) and numbers below 100 (am 3. Mai) need no list.
_TITLES = "mr mrs ms dr prof st sr jr mme mlle rev gen capt lt sgt"
_ENGLISH = "e.g i.e vs cf approx ca dept u.s"
_GERMAN = "bzw evtl ggf inkl exkl max min mio mrd str tel vgl sog bspw geb hl jh z.b d.h u.a chr"
_FRENCH = "ex env av apr éd j.-c p.ex boul"
_ABBREVIATIONS = frozenset(" ".join([_TITLES, _ENGLISH, _GERMAN, _FRENCH]).split())
_BEFORE_NUMBERS = frozenset(["no", "nos", "nr", "vol", "fig", "figs", "art", "pp", "chap", "col"])


@dataclass(frozen=True)
class Sentence:
    """A sentence of a text.

    Attributes:
        text: Without the spaces around it.
        ended: Whether it has its end mark, and was not cut before.
    """

    text: str
    ended: bool


def sentences(text: str) -> list[Sentence]:
    """Split a text into its sentences; every line begins a new one.

    A sentence ends at . ! ? or … where a capital letter or a number follows, unless the full stop
    belongs to an abbreviation, an initial or an ordinal number. So a sentence that ends in a single
    letter or a number below 100 is taken for one with the next.

    Examples:
        >>> [sentence.text for sentence in sentences("Mr. Fox ran 3.5 km. He was late.")]
        ['Mr. Fox ran 3.5 km.', 'He was late.']
    """
    found = []
    for line in filter(None, map(str.strip, text.splitlines())):
        start = 0
        for end in _END.finditer(line):
            if _ends(line, end):
                found.append(line[start : end.end()].strip())
                start = end.end()
        found.append(line[start:].strip())
    return [Sentence(each, bool(_CLOSED.search(each))) for each in found if each]


def _ends(line: str, mark: re.Match[str]) -> bool:
    """Whether a mark inside of a line ends a sentence."""
    following = _NEXT.match(line, mark.end())
    if following is None or not (following[1].isupper() or following[1].isdigit()):
        return False
    if not mark[0].startswith(".") or mark[0].startswith(".."):
        return True
    before = _LAST_WORD.search(line[: mark.start()])
    word = before[0].lower() if before else ""
    if following[1].isdigit() and word in _BEFORE_NUMBERS:
        return False
    is_ordinal = word.isdigit() and len(word) < 3
    return not (len(word) == 1 or is_ordinal or word in _ABBREVIATIONS)
