"""GLUE: rows from the benchmark's files or the hub, the split of a dev set, metrics.

Split and metrics are the paper's (appendix C.1).
"""

import csv
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
from jaxtyping import Shaped

from roadint.data.formats import UNREADABLE
from roadint.errors import RoadError, did_you_mean, first_line, listing, quoted

logger = logging.getLogger(__name__)
Metric = Literal["accuracy", "matthews", "pearson"]


@dataclass(frozen=True)
class GlueFormat:
    """The format of a task's files, and its metric.

    Attributes:
        texts: The columns of a row's one or two texts.
        label: The column of its label.
        labels: The labels, in the order of the classes; None where a number is to be predicted.
        metric: The metric.
        header: The columns of a file without a header.
        hub_texts: The names of `texts` on the hub, where they differ.
        dev: The name of the dev set on the hub.
    """

    texts: tuple[str, ...]
    label: str = "label"
    labels: tuple[str, ...] | None = ("0", "1")
    metric: Metric = "accuracy"
    header: tuple[str, ...] | None = None
    hub_texts: tuple[str, ...] | None = None
    dev: str = "validation"


_ENTAILED = ("entailment", "not_entailment")
FORMATS: dict[str, GlueFormat] = {
    "cola": GlueFormat(
        ("sentence",), metric="matthews", header=("source", "label", "mark", "sentence")
    ),
    "sst2": GlueFormat(("sentence",)),
    "mrpc": GlueFormat(
        ("#1 String", "#2 String"), label="Quality", hub_texts=("sentence1", "sentence2")
    ),
    "stsb": GlueFormat(("sentence1", "sentence2"), label="score", labels=None, metric="pearson"),
    "rte": GlueFormat(("sentence1", "sentence2"), labels=_ENTAILED),
    "qnli": GlueFormat(("question", "sentence"), labels=_ENTAILED),
    "qqp": GlueFormat(("question1", "question2"), label="is_duplicate"),
    "mnli": GlueFormat(
        ("sentence1", "sentence2"),
        label="gold_label",
        labels=("entailment", "neutral", "contradiction"),
        hub_texts=("premise", "hypothesis"),
        dev="validation_matched",
    ),
}


@dataclass(frozen=True)
class GlueRow:
    """One example of a task.

    Attributes:
        texts: One or two.
        label: The index of the class, or a number.
    """

    texts: tuple[str, ...]
    label: int | float


def load_glue(
    task: str, source: str | Path, split: str = "train", limit: int | None = None
) -> list[GlueRow]:
    """Read the rows of a task.

    Rows without a text or a label are skipped, as the usual readers do, and counted in the log.

    Args:
        task: A name in FORMATS.
        source: A tab-separated file, as the benchmark has them, or "hub" for nyu-mll/glue.
        split: "train" or "dev", on the hub.
        limit: How many rows to take, from the first; all by default.

    Returns:
        The rows.

    Raises:
        RoadError: for an unknown task, and a file or a row that can't be read.
    """
    if task not in FORMATS:
        raise RoadError(
            f"unknown GLUE task {quoted(task)}: expected one of {listing(FORMATS)}"
            f"{did_you_mean(task, FORMATS)}"
        )
    form, name = FORMATS[task], quoted(str(source))
    if str(source) == "hub":
        raw = _hub_rows(task, form, form.dev if split == "dev" else "train")
    else:
        raw = _file_rows(form, Path(str(source)))
    rows: list[GlueRow] = []
    seen = 0
    for seen, fields in enumerate(raw, 1):
        row = _row(form, fields, f"row {seen - 1} of {name}")
        if row is not None:
            rows.append(row)
        if len(rows) == limit:
            break
    if not rows:
        raise RoadError(
            f"GLUE {task} has no rows in {name}: expected {listing((*form.texts, form.label))}"
        )
    if len(rows) < seen:
        logger.warning(
            "skipped %s of %s rows of %s: a text or the label is missing",
            f"{seen - len(rows):,}",
            f"{seen:,}",
            name,
        )
    return rows


def split_dev(rows: list[GlueRow], seed: int) -> tuple[list[GlueRow], list[GlueRow]]:
    """Split a dev set at random, as the paper does (appendix C.1).

    Args:
        rows: The dev set.
        seed: The seed of the draw.

    Returns:
        Validation and test: 1,000 rows and the rest where there are over 2,000, else two halves.
    """
    order = np.random.default_rng(seed).permutation(len(rows))
    count = 1000 if len(rows) > 2000 else len(rows) // 2
    return [rows[i] for i in order[:count]], [rows[i] for i in order[count:]]


def measure(
    task: str, predicted: Shaped[np.ndarray, " rows"], labels: Shaped[np.ndarray, " rows"]
) -> float:
    """Compute a task's metric: accuracy, Matthews' or Pearson's correlation.

    Args:
        task: A name in FORMATS.
        predicted: The predicted classes or numbers.
        labels: The right classes or numbers.

    Returns:
        The metric; a correlation with a constant, or with what is not finite, is 0.

    Examples:
        >>> measure("sst2", np.array([0, 1, 1, 1]), np.array([0, 1, 1, 0]))
        0.75
    """
    if FORMATS[task].metric == "accuracy":
        return float((predicted == labels).mean())
    finite = np.isfinite(predicted).all()
    if not finite or np.ptp(predicted) == 0 or np.ptp(labels) == 0:  # std may be 1e-9, by rounding
        return 0.0
    return float(np.corrcoef(predicted, labels)[0, 1])  # of two classes, Pearson's is Matthews'


def _hub_rows(task: str, form: GlueFormat, split: str) -> Iterator[dict[str, Any]]:
    """The hub's rows, with the names of the benchmark's files and labels in words."""
    names = dict(zip(form.texts, form.hub_texts or form.texts, strict=True))
    try:
        for row in datasets.load_dataset("nyu-mll/glue", task, split=split):
            texts = {name: row[hub_name] for name, hub_name in names.items()}
            yield {**texts, form.label: _in_words(form, row["label"])}
    except Exception as error:  # whatever the hub and the network raise
        raise RoadError(
            f"GLUE {task} can't be loaded from the hub ({first_line(error)}): "
            "give a .tsv file instead"
        ) from error


def _in_words(form: GlueFormat, label: Any) -> str:
    """A label of the hub as in the files; empty for -1, by which the test set has none."""
    if form.labels is None:
        return str(label)
    return form.labels[label] if 0 <= label < len(form.labels) else ""


def _file_rows(form: GlueFormat, path: Path) -> Iterator[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, form.header, delimiter="\t", quoting=csv.QUOTE_NONE)
            names = list(reader.fieldnames or ())
            for name in (*form.texts, form.label):
                if names.count(name) != 1:
                    raise RoadError(
                        f"row 0 of {quoted(str(path))} has no {name!r}, or several: "
                        f"it has {listing(names)}"
                    )
            yield from reader
    except RoadError:
        raise
    except (*UNREADABLE, csv.Error) as error:
        raise RoadError(
            f"GLUE file {quoted(str(path))} can't be read ({first_line(error)}): "
            "expected a .tsv file, or 'hub'"
        ) from None


def _row(form: GlueFormat, row: Mapping[Any, Any], where: str) -> GlueRow | None:
    """A row of a file; None where a text or the label is missing."""
    if None in row:  # csv puts cells beyond the columns there
        raise RoadError(
            f"{where} has more cells than columns: {quoted(row[None])}; "
            "expected none of them to hold a tab"
        )
    if not all(row.get(name) for name in (*form.texts, form.label)):
        return None
    texts, label = tuple(row[name] for name in form.texts), row[form.label].strip()
    if form.labels is None:
        try:
            score = float(label)
        except ValueError:
            score = math.nan
        if not math.isfinite(score):
            raise RoadError(f"{where} has the {form.label} {quoted(label)}: expected a number")
        return GlueRow(texts, score)
    if label not in form.labels:
        raise RoadError(
            f"{where} has the {form.label} {quoted(label)}: expected one of {listing(form.labels)}"
        )
    return GlueRow(texts, form.labels.index(label))
