"""Rows with images, in LLaVA's form or with the fields of a row, as conversations.

    {"image": "cat.png", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"},
                                           {"from": "gpt", "value": "A cat."}]}
    {"image": "cat.png", "instruction": "What is it?", "input": "", "output": "A cat."}

"image" is a path, from the folder of the data file on, an image of PIL, or a list of these; a row
without one is about text alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from roadint.data.formats import FORMATS
from roadint.data.prompts import check_text
from roadint.data.rows import OPTIONAL, RowForm, UnusableRow, checked_row
from roadint.data.sources import DataSource, collect
from roadint.errors import RoadError, listing, quoted
from roadint.files.paths import is_file

_PLACE = "<image>"  # where LLaVA's data have the image in a text; a model's template has its own
_SIDES = ("human", "gpt")

ImageLike = Path | Image.Image


@dataclass(frozen=True)
class Conversation:
    """What is asked and answered about images.

    Attributes:
        images: Those of the first question, which come before its text.
        turns: Questions and their answers.
    """

    images: tuple[ImageLike, ...]
    turns: tuple[tuple[str, str], ...]


def load_conversations(
    source: DataSource, limit: int | None = None, seed: int | None = None
) -> list[Conversation]:
    """The conversations of a source.

    Args:
        source: A file, a data set of the hub, or rows in memory, as `load_rows` takes them.
        limit: How many usable rows to take, from the first; all by default.
        seed: Draws a random sample of `limit` rows instead, always the same one.

    Raises:
        RoadError: where the source, a row or the path of an image can't be read.
    """
    folder = None
    if isinstance(source, (str, Path)) and Path(source).suffix.lower() in FORMATS:
        folder = Path(source).parent
    check = partial(checked_conversation, folder=folder)
    return collect(source, limit, seed, check, (*OPTIONAL, "image", "conversations"))


def checked_conversation(
    raw: Any, form: RowForm | None = None, folder: Path | None = None
) -> Conversation:
    """Check a row.

    Args:
        raw: The row of the source.
        form: Makes the fields, where the source has others.
        folder: Where paths of images begin; the working directory by default.

    Raises:
        UnusableRow: where its text is missing.
        RoadError: where it is no row; the message goes on after the row's name.
    """
    if not isinstance(raw, Mapping):
        raise RoadError(
            f"is {type(raw).__name__}: expected fields 'image', and 'conversations' or "
            "'instruction' and 'output'"
        )
    fields = form(raw) if form else raw
    given = fields.get("image")
    listed = given if isinstance(given, (list, tuple)) else [given]
    images = tuple(_image(each, folder) for each in listed if each is not None and each != "")
    if fields.get("conversations") is not None:
        return Conversation(images, _turns(fields["conversations"]))
    row = checked_row(fields)
    question = "\n".join(filter(None, (row["instruction"], row.get("input"))))
    return Conversation(images, ((_without_place(question), row["output"]),))


def _image(given: Any, folder: Path | None) -> ImageLike:
    if isinstance(given, Image.Image):
        return given
    if not isinstance(given, (str, Path)):
        raise RoadError(f"has the image {quoted(given)}: expected a path or an image of PIL")
    path = (folder or Path()) / given
    if not is_file(path):
        raise RoadError(f"has the image {quoted(str(given))}: there is no file {quoted(str(path))}")
    return path


def _turns(said: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(said, (list, tuple)) or not all(isinstance(one, Mapping) for one in said):
        raise RoadError(
            f"has conversations {quoted(said)}: expected a list of {{'from': …, 'value': …}}"
        )
    sides = [one.get("from") for one in said]
    if len(said) % 2 or sides != [*_SIDES] * (len(said) // 2):
        raise RoadError(
            f"has a conversation of {listing(map(str, sides)) or 'nobody'}: expected 'human' and "
            "'gpt' in turn"
        )
    texts = [one.get("value") or "" for one in said]
    for index, text in enumerate(texts):
        check_text("value", text)
        if index and _PLACE in text:
            raise RoadError(
                f"has {_PLACE} in {quoted(text)}: expected images in the first question alone"
            )
    questions, answers = map(_without_place, texts[::2]), texts[1::2]
    if not texts or not all(answer.strip() for answer in answers):
        raise UnusableRow("an empty or non-text answer")
    return tuple(zip(questions, answers, strict=True))


def _without_place(text: str) -> str:
    return text.replace(_PLACE, "").strip()
