"""GLUE: its tasks, from the files of the benchmark or the hub, with the paper's split and metrics (appendix C.1)."""

import csv
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np

from roadint.data.formats import UNREADABLE
from roadint.errors import RoadError, did_you_mean, first_line, listing, quoted

logger = logging.getLogger(__name__)
Metric = Literal["accuracy", "matthews", "pearson"]


@dataclass(frozen=True)
class Glue:
    """One task. texts: the columns that a row's one or two texts are in; labels: what its label column holds, in order.

    header: the columns of a file that has none. hub: the names of the columns on the hub, where they differ.
    """

    texts: tuple[str, ...]
    label: str = "label"
    labels: tuple[str, ...] | None = ("0", "1")  # None: a number, to be predicted
    metric: Metric = "accuracy"
    header: tuple[str, ...] | None = None
    hub_texts: tuple[str, ...] | None = None
    dev: str = "validation"


_ENTAILED = ("entailment", "not_entailment")
TASKS: dict[str, Glue] = {
    "cola": Glue(("sentence",), metric="matthews", header=("source", "label", "mark", "sentence")),
    "sst2": Glue(("sentence",)),
    "mrpc": Glue(("#1 String", "#2 String"), label="Quality", hub_texts=("sentence1", "sentence2")),
    "stsb": Glue(("sentence1", "sentence2"), label="score", labels=None, metric="pearson"),
    "rte": Glue(("sentence1", "sentence2"), labels=_ENTAILED),
    "qnli": Glue(("question", "sentence"), labels=_ENTAILED),
    "qqp": Glue(("question1", "question2"), label="is_duplicate"),
    "mnli": Glue(
        ("sentence1", "sentence2"),
        label="gold_label",
        labels=("entailment", "neutral", "contradiction"),
        hub_texts=("premise", "hypothesis"),
        dev="validation_matched",
    ),
}


@dataclass(frozen=True)
class Row:
    """One or two texts, and the label: its place in the task's labels, or a number."""

    texts: tuple[str, ...]
    label: int | float


def load_glue(
    task: str, source: str | Path, split: str = "train", limit: int | None = None
) -> list[Row]:
    """The first `limit` rows of a task. source: a tab-separated file as the benchmark has them, or "hub" for nyu-mll/glue.

    split: "train" or "dev", on the hub. Rows without a text or a label are skipped, as the usual readers do, and counted in a line.
    Raises RoadError for an unknown task, and a file or a row that can't be read.
    """
    if task not in TASKS:
        raise RoadError(
            f"unknown GLUE task {quoted(task)}: expected one of {listing(TASKS)}{did_you_mean(task, TASKS)}"
        )
    known, name = TASKS[task], quoted(str(source))
    raw = (
        _hub(task, known.dev if split == "dev" else "train")
        if str(source) == "hub"
        else _read(known, Path(str(source)))
    )
    rows: list[Row] = []
    seen = 0
    for seen, each in enumerate(raw, 1):
        row = _row(known, each, f"row {seen - 1} of {name}")
        if row is not None:
            rows.append(row)
        if len(rows) == limit:
            break
    if not rows:
        raise RoadError(
            f"GLUE {task} has no rows in {name}: expected {listing((*known.texts, known.label))}"
        )
    if len(rows) < seen:
        logger.warning(
            "skipped %s of %s rows of %s: a text or the label is missing",
            f"{seen - len(rows):,}",
            f"{seen:,}",
            name,
        )
    return rows


def split_dev(rows: list[Row], seed: int = 0) -> tuple[list[Row], list[Row]]:
    """The dev set as (validation, test), at random: 1,000 rows and the rest where it has over 2,000, else two halves."""
    order = np.random.default_rng(seed).permutation(len(rows))
    count = 1000 if len(rows) > 2000 else len(rows) // 2
    return [rows[i] for i in order[:count]], [rows[i] for i in order[count:]]


def measure(task: str, predicted: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> float:
    """The task's metric. predicted: [rows] ints, or numbers where labels are; accuracy, Matthews' or Pearson's correlation.

    A correlation with a constant is 0.
    """
    if TASKS[task].metric == "accuracy":
        return float((predicted == labels).mean())
    if predicted.std() == 0 or labels.std() == 0:
        return 0.0
    return float(np.corrcoef(predicted, labels)[0, 1])  # of two classes, Pearson's is Matthews'


def _hub(task: str, split: str) -> Iterator[dict[str, Any]]:
    """The hub's rows with the names of the benchmark's files and labels in words."""
    known = TASKS[task]
    try:
        for row in datasets.load_dataset("nyu-mll/glue", task, split=split):
            names = zip(known.texts, known.hub_texts or known.texts, strict=True)
            label = row["label"]
            in_words = (
                str(label)
                if known.labels is None
                else known.labels[label]
                if 0 <= label < len(known.labels)
                else ""
            )
            yield {**{name: row[there] for name, there in names}, known.label: in_words}
    except Exception as error:  # whatever the hub and the network raise
        raise RoadError(
            f"GLUE {task} can't be loaded from the hub ({first_line(error)}): give a .tsv file instead"
        ) from error


def _read(known: Glue, path: Path) -> Iterator[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, known.header, delimiter="\t", quoting=csv.QUOTE_NONE)
            names = list(reader.fieldnames or ())
            for name in (*known.texts, known.label):
                if names.count(name) != 1:
                    raise RoadError(
                        f"row 0 of {quoted(str(path))} has no {name!r}, or several: it has {listing(names)}"
                    )
            yield from reader
    except RoadError:
        raise
    except (*UNREADABLE, csv.Error) as error:
        raise RoadError(
            f"GLUE file {quoted(str(path))} can't be read ({first_line(error)}): expected a .tsv file, or 'hub'"
        ) from None


def _row(known: Glue, row: Mapping[Any, Any], where: str) -> Row | None:
    """None where a text or the label is missing."""
    if None in row:  # where csv puts what is beyond the columns
        raise RoadError(
            f"{where} has more cells than columns: {quoted(row[None])}; expected none of them to hold a tab"
        )
    if not all(row.get(name) for name in (*known.texts, known.label)):
        return None
    texts, label = tuple(row[name] for name in known.texts), row[known.label].strip()
    if known.labels is None:
        try:
            score = float(label)
        except ValueError:
            score = math.nan
        if not math.isfinite(score):
            raise RoadError(f"{where} has the {known.label} {quoted(label)}: expected a number")
        return Row(texts, score)
    if label not in known.labels:
        raise RoadError(
            f"{where} has the {known.label} {quoted(label)}: expected one of {listing(known.labels)}"
        )
    return Row(texts, known.labels.index(label))
