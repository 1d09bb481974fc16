"""`roadint.evaluate`: the likelihood of data sets and the quality of answers, by composition."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from roadint.data.prompts import Prompt, check_tokenizer, listed_prompts, prompt_text
from roadint.data.rows import Row
from roadint.data.sources import DataSource, load_prompts, load_rows
from roadint.errors import RoadError, quoted
from roadint.evaluation.answers import answer_all, hits_of, judged
from roadint.evaluation.divergence import divergence
from roadint.evaluation.forms import asked_by, asked_of
from roadint.evaluation.language import shares_of
from roadint.evaluation.likelihood import reference_nll
from roadint.evaluation.report import Evaluation, Intervals
from roadint.evaluation.statistics import interval
from roadint.grammar.composition import Composition, CompositionLike
from roadint.model.road_model import RoadModel

DEV = {
    "german": "bundled:german_dev",
    "english": "bundled:english_dev",
    "cross": "bundled:cross_dev",
}
FRENCH_DEV = {"french": "bundled:french_dev", "cross_french": "bundled:cross_french_dev"}
UNRELATED = "bundled:unrelated"

_SHARES = ("on_topic", "success", "degenerate")  # and properties
_Summary = TypeVar("_Summary")


def evaluate(
    road: RoadModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Mapping[str, DataSource] | None = None,
    prompts: Sequence[Prompt] | None = None,
    *,
    compose: Sequence[CompositionLike] | None = None,
    rows: int | None = None,
    expect: Mapping[str, str] | None = None,
    max_completion: int = 64,
    max_new_tokens: int = 48,
    batch_size: int = 8,
    quiet: bool = False,
) -> Evaluation:
    """Measure compositions: likelihood of references; language, topic and form of answers.

    Args:
        road: The model.
        tokenizer: The model's.
        data: Name → source of references (`roadint.data.sources`); the bundled development samples
            by default, the German and French ones for subspaces that ask for these languages; {}
            measures answers and divergence alone.
        prompts: The prompts to answer, all different, texts or mappings of "instruction" and
            "input"; the paper's nine by default.
        compose: The compositions; none, every subspace alone and all of them by default.
        rows: How many rows to take of a source, from the first; all by default.
        expect: Subspace → property of answers that a success with it has (`PROPERTIES` in
            `roadint.evaluation.forms`, or the code of a language); "nothing" for none. By default
            a subspace asks for what its name says (`ASKED` there), or for nothing.
        max_completion: The length at which references are cut, in tokens.
        max_new_tokens: The largest length of an answer, in tokens.
        batch_size: The number of rows in a batch; answers come in batches of eight times as many.
        quiet: Whether there are no progress bars.

    Raises:
        RoadError: where a source or a composition can't be read, or there is nothing to evaluate.
    """
    _check_arguments(road, tokenizer, data)
    asked = asked_by(road.names, expect)
    compositions = _compositions(road, compose)
    used = dev_sets(road.names) if data is None else data
    sets = {name: load_rows(source, rows) for name, source in used.items()}
    paper: Sequence[Prompt] = load_prompts("bundled:prompts_paper")
    questions = listed_prompts(paper if prompts is None else prompts)
    if not questions or not compositions:
        raise RoadError("nothing to evaluate: expected at least one prompt and one composition")
    limits: dict[str, Any] = {"max_completion": max_completion, "quiet": quiet}
    nll = _likelihoods(road, tokenizer, sets, compositions, batch_size=batch_size, **limits)
    unrelated = divergence(road, tokenizer, load_rows(UNRELATED, rows), compositions, **limits)
    texts = answer_all(
        road,
        tokenizer,
        questions,
        compositions,
        batch_size=8 * batch_size,
        max_new_tokens=max_new_tokens,
        quiet=quiet,
    )
    answers = judged(texts, list(map(prompt_text, questions)))
    by_composition = {
        name: [answer for answer in answers if answer.composition == name] for name in nll
    }
    asks = {str(composition): asked_of(composition, asked) for composition in compositions}
    properties = list(dict.fromkeys(asked.values()))
    hits = {
        name: hits_of(listed, properties, asks[name]) for name, listed in by_composition.items()
    }
    means = _summarised(nll, _mean)
    return Evaluation(
        nll=means,
        language={
            name: shares_of([answer.language for answer in listed])
            for name, listed in by_composition.items()
        },
        shares=_all_shares(_summarised(hits, _mean), properties),
        kl={name: _mean(values) for name, values in zip(nll, unrelated, strict=True)},
        gain=_gains(means, compositions),
        interference=_interference(means, compositions),
        asks=asks,
        intervals=Intervals(
            nll=_summarised(nll, interval),
            shares=_all_shares(_summarised(hits, interval), properties),
        ),
        answers=answers,
    )


def dev_sets(names: Iterable[str]) -> dict[str, str]:
    """The bundled development samples of English, and of what subspaces of these names ask for."""
    asked = set(asked_by(list(names)).values())
    sets = dict(DEV) if "german" in asked else {"english": DEV["english"]}
    return sets | (FRENCH_DEV if "french" in asked else {})


def _check_arguments(road: object, tokenizer: object, data: object) -> None:
    if not isinstance(road, RoadModel):
        raise RoadError(
            f"{quoted(road)} is no RoadModel: "
            "expected roadint.RoadModel(model, …), or one from a checkpoint"
        )
    check_tokenizer(tokenizer)
    if data is not None and not isinstance(data, Mapping):
        raise RoadError(
            f"data {quoted(data)}: expected a mapping of names to sources, "
            "such as {'german': 'german.jsonl'}"
        )


def _compositions(road: RoadModel, compose: Any) -> list[Composition]:
    if compose is None:
        return list(dict.fromkeys(road.compositions()))
    listed = compose if isinstance(compose, (list, tuple)) else [compose]
    return list(dict.fromkeys(Composition.parse(text, road.names) for text in listed))


def _likelihoods(
    road: RoadModel,
    tokenizer: PreTrainedTokenizerBase,
    sets: Mapping[str, list[Row]],
    compositions: Sequence[Composition],
    **limits: Any,
) -> dict[str, dict[str, list[float]]]:
    """[composition][data set], the nats a token of every reference."""
    nll: dict[str, dict[str, list[float]]] = {str(composition): {} for composition in compositions}
    for name, references in sets.items():
        values = reference_nll(road, tokenizer, references, compositions, **limits)
        for by_set, references_nll in zip(nll.values(), values, strict=True):
            by_set[name] = references_nll
    return nll


def _all_shares(
    known: Mapping[str, Mapping[str, _Summary]], properties: Sequence[str]
) -> dict[str, dict[str, _Summary | None]]:
    """All shares; None for those that are not known."""
    return {
        composition: {name: shares.get(name) for name in (*_SHARES, *properties)}
        for composition, shares in known.items()
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _summarised(
    samples: Mapping[str, Mapping[str, list[float]]], summarise: Callable[[list[float]], _Summary]
) -> dict[str, dict[str, _Summary]]:
    """The samples with a summary in place of every list."""
    return {
        composition: {name: summarise(values) for name, values in named.items()}
        for composition, named in samples.items()
    }


def _gains(
    nll: Mapping[str, Mapping[str, float]], compositions: Sequence[Composition]
) -> dict[str, dict[str, float]]:
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
    interference: dict[str, dict[str, float]] = {}
    for composition in compositions:
        for name, _ in composition.terms:
            if len(composition.terms) > 1 and name in nll and name in nll[name]:
                more = nll[str(composition)][name] - nll[name][name]
                interference.setdefault(name, {})[str(composition)] = more
    return interference
