"""`roadint.evaluate`: the composition matrix, each composition against each data set, and the languages of the answers."""

from collections.abc import Mapping, Sequence
from typing import Any

from roadint.composition import Composition, CompositionLike
from roadint.data.sources import Source, load_prompts, load_rows
from roadint.errors import RoadError
from roadint.evaluation.language import language_shares
from roadint.evaluation.likelihood import reference_nll
from roadint.model import RoadModel
from roadint.progress import track

DEV = {"german": "bundled:german_dev", "english": "bundled:english_dev", "cross": "bundled:cross_dev"}


def evaluate(
    road: RoadModel,
    tokenizer: Any,
    data: Mapping[str, Source] | None = None,
    prompts: Sequence[str] | None = None,
    *,
    compose: Sequence[CompositionLike] | None = None,
    rows: int | None = None,
    max_completion: int = 64,
    max_new_tokens: int = 48,
    batch_size: int = 8,
    quiet: bool = False,
) -> dict[str, Any]:
    """Measure each composition: likelihood of references, language of answers.

    data: name → source, the bundled development samples by default. prompts: the paper's nine by default.
    compose: what to compare; none, each subspace and all of them by default. rows: the first rows of each source, all by default.
    quiet: no progress bars.
    Returns {"nll": {composition: {data set: nats a token, mean over references}},
    "language": {composition: {code: share of answers}}, "answers": [{prompt, composition, text}]}.
    Raises RoadError for sources or compositions that can't be read.
    """
    compositions = road.compositions() if compose is None else [Composition.parse(each, road.names) for each in compose]
    sets = {name: load_rows(source, rows) for name, source in (DEV if data is None else data).items()}
    asked = load_prompts("bundled:prompts_paper") if prompts is None else list(prompts)
    if not asked or not compositions:
        raise RoadError("nothing to evaluate: expected at least one prompt and one composition")
    nll: dict[str, dict[str, float]] = {str(composition): {} for composition in compositions}
    for name, references in sets.items():
        measured = reference_nll(
            road, tokenizer, references, compositions, max_completion=max_completion, batch_size=batch_size, quiet=quiet
        )
        for composition, value in zip(compositions, measured, strict=True):
            nll[str(composition)][name] = value
    answers = answer_all(
        road, tokenizer, asked, compositions, batch_size=4 * batch_size, max_new_tokens=max_new_tokens, quiet=quiet
    )
    texts = {str(c): [a["text"] for a in answers if a["composition"] == str(c)] for c in compositions}
    language = {composition: language_shares(each) for composition, each in texts.items()}
    return {"nll": nll, "language": language, "answers": answers}


def answer_all(
    road: RoadModel,
    tokenizer: Any,
    prompts: Sequence[str],
    compositions: Sequence[Composition],
    *,
    batch_size: int = 32,
    quiet: bool = True,
    **generation: Any,
) -> list[dict[str, str]]:
    """Every prompt through every composition, in mixed batches: a list of {prompt, composition, text}, prompt by prompt."""
    pairs = [(prompt, composition) for prompt in prompts for composition in compositions]
    starts = range(0, len(pairs), batch_size)
    answers = []
    for start in track(starts, len(starts), "answers", quiet=quiet):
        batch = pairs[start : start + batch_size]
        texts = road.generate(tokenizer, [p for p, _ in batch], [c for _, c in batch], **generation)
        for (prompt, composition), text in zip(batch, texts, strict=True):
            answers.append({"prompt": prompt, "composition": str(composition), "text": text})
    return answers
