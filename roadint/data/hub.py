"""Data sets of the hub: the paper's two, with their own fields (section 4.3), and any other."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import datasets

from roadint.data.rows import Row, RowForm, UnusableRow, field_of
from roadint.errors import RoadError, first_line, quoted


def hub_rows(name: str) -> Iterator[Any]:
    """The rows of a data set's split "train", as they are.

    Args:
        name: "OWNER/NAME".

    Raises:
        RoadError: where the data set can't be loaded.
    """
    try:
        yield from datasets.load_dataset(name, split="train")
    except Exception as error:  # whatever the hub, the network and decoding raise
        raise RoadError(
            f"data set {quoted(name)} can't be loaded from the hub ({first_line(error)}): "
            "give a local file instead"
        ) from error


def from_hellaswag_de(row: Mapping[str, Any]) -> Row:
    """A row of LeoLM/HellaSwag_de: the English context, and the German ending of its label.

    Raises:
        UnusableRow: where the label names no ending, as in the test split, where labels are empty.
    """
    context, endings, label = (field_of(row, name) for name in ("ctx", "endings_de", "label"))
    listed = endings if isinstance(endings, (list, tuple)) else ()
    for index, ending in enumerate(listed):
        if str(index) == str(label):
            return {"instruction": context, "output": ending}
    raise UnusableRow("a label that names no ending")


def from_ultrafeedback(row: Mapping[str, Any]) -> Row:
    """A row of openbmb/UltraFeedback: the instruction, and its completion with the best score.

    Raises:
        UnusableRow: where no completion is rated.
    """
    instruction, completions = (field_of(row, name) for name in ("instruction", "completions"))
    listed = completions if isinstance(completions, (list, tuple)) else ()
    rated = [
        (score, completion)
        for completion in listed
        if isinstance(completion, Mapping) and (score := _score(completion)) is not None
    ]
    if not rated:
        raise UnusableRow("no rated completion")
    _, best = max(rated, key=lambda pair: pair[0])
    return {"instruction": instruction, "output": best.get("response")}


HUB_FORMS: dict[str, RowForm] = {
    "LeoLM/HellaSwag_de": from_hellaswag_de,
    "openbmb/UltraFeedback": from_ultrafeedback,
}


def _score(completion: Mapping[str, Any]) -> float | None:
    """The finite overall score of a completion, if it has one."""
    value = completion.get("overall_score")
    try:
        score = float(value) if isinstance(value, (int, float, str)) else math.nan
    except ValueError:  # "N/A"
        return None
    return score if math.isfinite(score) else None
