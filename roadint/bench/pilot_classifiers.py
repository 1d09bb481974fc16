"""The second pilot study of `roadint bench pilot`: classifiers of a frozen encoder's states."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from transformers import AutoModelForSequenceClassification, set_seed

from roadint.inspection.pilot import PilotClassifier, Reads, fit_classifier
from roadint.inspection.states import hidden_states
from roadint.progress import track
from roadint.recipes.recipe import Recipe
from roadint.tasks import glue
from roadint.tasks.classification import ClassificationTask
from roadint.tasks.run import load_for

RATES = (1e-3, 3e-3, 1e-2, 3e-2)
_RESAMPLES = 1000


@dataclass(frozen=True)
class Reading:
    """What a classifier is given.

    Attributes:
        reads: What it reads of states.
        encoder: Whose states: "pretrained" or "random".
        scaled: Whether states are divided by their mean size. As they are, ‖W‖·‖x0‖ is around 7 or
            more, where tanh hardly changes: then nothing can be learned from the size.
    """

    reads: Reads
    encoder: str = "pretrained"
    scaled: bool = False


READINGS = {
    "angle": Reading("angle"),
    "magnitude": Reading("magnitude"),
    "both": Reading("both"),
    "random": Reading("both", encoder="random"),
    "magnitude, scaled": Reading("magnitude", scaled=True),
    "both, scaled": Reading("both", scaled=True),
}
"""The first four are figure 2 (right)."""

_CLAIMS = (
    ("angle", "magnitude"),
    ("random", "magnitude"),
    ("both", "angle"),
    ("both", "random"),
    ("angle", "magnitude, scaled"),
    ("random", "magnitude, scaled"),
    ("both, scaled", "angle"),
)
"""The first is said to be better than the second: four times by the paper's figure."""


@dataclass(frozen=True)
class Frozen:
    """What an encoder says of a task's rows, once and for all.

    Attributes:
        states: x0, the first token's hidden state after the last layer, by split.
        labels: Classes or numbers, by split.
        scale: What all x0 are divided by; the mean size of the training rows' x0.
    """

    states: Mapping[str, Float[Tensor, "rows width"]]
    labels: Mapping[str, Shaped[np.ndarray, " rows"]]
    scale: float


@dataclass(frozen=True)
class Trained:
    """A classifier after its epoch with the best validation score.

    Attributes:
        validation: That score.
        predicted: The classes or numbers of the test rows.
    """

    validation: float
    predicted: Shaped[np.ndarray, " rows"]


def encode(task: ClassificationTask, recipe: Recipe) -> dict[str, Frozen]:
    """Run the pretrained encoder, and one of the same form with random weights, over all rows.

    Args:
        task: The task.
        recipe: The recipe, which names the model.

    Returns:
        "pretrained" and "random".

    Raises:
        RoadError: where a row has more tokens than the encoder has positions.
    """
    model, tokenizer = load_for(task, recipe)
    set_seed(recipe.optimisation.seed)
    build: Any = AutoModelForSequenceClassification.from_config
    untrained = build(model.config, dtype=model.dtype)
    rows = {split: task.encoded(tokenizer, split) for split in task.splits}
    found = {}
    labels = {split: np.array([row["labels"] for row in rows[split]]) for split in rows}
    for name, encoder in {"pretrained": model, "random": untrained.to(model.device)}.items():
        states = {
            split: hidden_states(encoder.eval(), tokenizer, encoded, token="first")[-1]
            for split, encoded in rows.items()
        }
        found[name] = Frozen(states, labels, float(states["train"].norm(dim=-1).mean()))
    return found


def study_classifiers(
    task: ClassificationTask,
    recipe: Recipe,
    seeds: Sequence[int],
    rates: Sequence[float],
    epochs: int,
    *,
    quiet: bool,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Train every classifier in READINGS on a task, and measure it on the test rows.

    The first seed tries all rates, and the one with the best validation score is taken for the
    other seeds too (appendix C.1).

    Args:
        task: The task.
        recipe: The recipe, with the model.
        seeds: The seeds of classifiers and of the order of rows; the first is the random encoder's.
        rates: The learning rates that are tried, the same for all.
        epochs: How often a classifier sees the training rows.
        quiet: Whether there is no progress bar.

    Returns:
        The cases, one for each reading; and comparisons of two of them, with the 95 % bootstrap
        interval of their difference over test rows.
    """
    encoders = encode(task, recipe.override({"seed": seeds[0]}))
    cases, predicted = [], {}
    readings = track(READINGS.items(), len(READINGS), f"study 2, {task.task}", quiet=quiet)
    for name, reading in readings:
        frozen = encoders[reading.encoder]
        train = partial(
            best_classifier,
            frozen if reading.scaled else replace(frozen, scale=1.0),
            task,
            reading.reads,
            epochs=epochs,
            batch_size=recipe.optimisation.batch_size,
        )
        tried = {rate: train(rate=rate, seed=seeds[0]) for rate in rates}
        rate = max(tried, key=lambda rate: tried[rate].validation)
        trained = [tried[rate], *(train(rate=rate, seed=seed) for seed in seeds[1:])]
        predicted[name] = [classifier.predicted for classifier in trained]
        labels = frozen.labels["test"]
        tests = [glue.measure(task.task, classifier.predicted, labels) for classifier in trained]
        cases.append(
            {
                "study": 2,
                "task": task.task,
                "metric": task.metric,
                "reads": name,
                "rows": task.sizes(),
                "test": round(statistics.mean(tests), 4),
                "sd": round(statistics.stdev(tests), 4) if len(tests) > 1 else None,
                "validation": round(statistics.mean(each.validation for each in trained), 4),
                "lr": rate,
                "tried": {f"{rate:g}": round(run.validation, 4) for rate, run in tried.items()},
                "size": round(frozen.scale, 4),
                "size_sd": round(float(frozen.states["train"].norm(dim=-1).std()), 5),
            }
        )
    labels = encoders["pretrained"].labels["test"]
    return cases, [
        compare(task.task, better, worse, predicted[better], predicted[worse], labels)
        for better, worse in _CLAIMS
    ]


def compare(
    task: str,
    better: str,
    worse: str,
    predicted: Sequence[Shaped[np.ndarray, " rows"]],
    others: Sequence[Shaped[np.ndarray, " rows"]],
    labels: Shaped[np.ndarray, " rows"],
) -> dict[str, Any]:
    """Compare two classifiers on the same test rows.

    Args:
        task: The task, for its metric.
        better: The reading that is said to be better.
        worse: The other one.
        predicted: What the first predicts, with each seed.
        others: What the second predicts, with each seed.
        labels: The right classes or numbers.

    Returns:
        The difference of their metrics, means over seeds; the bounds of its 95 % interval over
        resampled rows; "holds" is True or False where the interval is on one side of 0, else None.
    """

    def difference(rows: Any) -> float:
        means = [
            statistics.mean(glue.measure(task, run[rows], labels[rows]) for run in runs)
            for runs in (predicted, others)
        ]
        return means[0] - means[1]

    draw = np.random.default_rng(0).integers(len(labels), size=(_RESAMPLES, len(labels)))
    low, high = np.percentile([difference(rows) for rows in draw], [2.5, 97.5])
    return {
        "study": 2,
        "task": task,
        "better": better,
        "worse": worse,
        "difference": round(difference(slice(None)), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
        "holds": bool(low > 0) if low > 0 or high < 0 else None,
    }


def best_classifier(
    frozen: Frozen,
    task: ClassificationTask,
    reads: Reads,
    *,
    rate: float,
    seed: int,
    epochs: int,
    batch_size: int,
) -> Trained:
    """Train a classifier of cached states; the epoch with the best validation score counts.

    Args:
        frozen: The states.
        task: The task, for its metric and its number of classes.
        reads: What the classifier reads.
        rate: The learning rate.
        seed: The seed of the classifier and of the order of rows.
        epochs: How often it sees the training rows.
        batch_size: The rows of a step.
    """
    states = {split: values / frozen.scale for split, values in frozen.states.items()}
    labels, regression = torch.as_tensor(frozen.labels["train"]), task.labels == 1
    best: list[Trained] = []

    def keep(classifier: PilotClassifier) -> None:
        predicted = _predicted(classifier, states["validation"], regression)
        score = glue.measure(task.task, predicted, frozen.labels["validation"])
        if not best or score > best[0].validation:
            best[:] = [Trained(score, _predicted(classifier, states["test"], regression))]

    fit_classifier(
        states["train"],
        labels.float() if regression else labels.long(),
        reads,
        classes=task.labels,
        rate=rate,
        seed=seed,
        epochs=epochs,
        batch_size=batch_size,
        after_epoch=keep,
    )
    return best[0]


@torch.no_grad()
def _predicted(
    model: PilotClassifier, states: Float[Tensor, "rows width"], regression: bool
) -> Shaped[np.ndarray, " rows"]:
    logits = model.eval()(states)
    predicted: np.ndarray = (logits[:, 0].double() if regression else logits.argmax(-1)).numpy()
    return predicted
