"""Preparing a training: data and settings, read and checked before anything is written."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from roadint.data.collate import Collator, Example, check_fits, tokenize
from roadint.data.image_text.collate import ImageTextCollator, tokenize_conversations
from roadint.data.image_text.conversations import load_conversations
from roadint.data.image_text.reader import is_processor
from roadint.data.prompts import Template, check_template
from roadint.data.sources import DataSource, load_rows
from roadint.errors import RoadError, did_you_mean, listing, quoted
from roadint.grammar.composition import ALL, Composition
from roadint.model.road_model import RoadModel
from roadint.recipes.recipe import Recipe
from roadint.training.companions import Companions
from roadint.training.constraints import Constraints
from roadint.training.preserving import check_data_sets, preserving


@dataclass(frozen=True)
class PreparedRun:
    """A training that fits its model.

    Attributes:
        recipe: The recipe.
        sources: Composition → the name of its data source.
        examples: The tokens of all data sets.
        template: The template of the prompts.
        constraints: What happens to values around optimizer steps.
        strengths: Subspace → the strength that becomes the new 1 after training.
        companions: Composition → its companions.
        collator: Makes the batches.
    """

    recipe: Recipe
    sources: dict[str, str]
    examples: Sequence[Example]
    template: Template
    constraints: Constraints
    strengths: dict[str, float]
    companions: dict[str, list[str]]
    collator: Collator | ImageTextCollator


def prepare(
    road: RoadModel,
    tokenizer: PreTrainedTokenizerBase | ProcessorMixin,
    data: Mapping[str, DataSource] | None,
    recipe: Recipe,
    chosen: Collection[str] = (),
) -> PreparedRun:
    """Read the data and check that all fits the model.

    Args:
        road: The model to train.
        tokenizer: The model's tokenizer, or its processor where rows have images.
        data: Composition → source; the recipe's by default.
        recipe: The recipe.
        chosen: The names of settings that the caller set. Rates, strengths and companions of other
            data sets and subspaces are refused there, and dropped where they are a preset's.

    Returns:
        The prepared run.

    Raises:
        RoadError: for what does not fit.
    """
    check_reader(tokenizer, images=recipe.data.images)
    # A processor has a chat template as well.
    template = check_template(recipe.data.template, tokenizer)  # type: ignore[arg-type]
    empty = data is None or (isinstance(data, Mapping) and not data)
    sources: Any = recipe.data.sources if empty else data
    examples = _tokenize_all(road, tokenizer, sources, recipe)
    compositions = {str(example.composition) for example in examples}
    cut = _relevant("max_completions", recipe.data.max_completions, compositions, chosen)
    check_data_sets("max_completions", cut, compositions)
    preserve = _relevant("preserve", recipe.data.preserve, compositions, chosen)
    examples = [*examples, *preserving(examples, preserve, recipe)]
    collator = (ImageTextCollator if is_processor(tokenizer) else Collator)(tokenizer)  # type: ignore
    check_fits(examples, road.model, collator.fill)
    optimisation = recipe.optimisation
    rates = _relevant("lrs", optimisation.lrs, road.names, chosen)
    strengths = _relevant("strengths", optimisation.strengths, road.names, chosen)
    _check_names("lrs", dict.fromkeys(rates, 1.0), road.names)
    _check_names("strengths", strengths, road.names)
    factors = {name: rate / optimisation.lr for name, rate in rates.items()}
    constraints = Constraints(factors, optimisation.decay, optimisation.max_log_scale)
    constraints.check(list(road.interventions))
    companions = _relevant("companions", recipe.data.companions, compositions, chosen)
    _check_companions(road, companions, recipe.data.companion_rate, compositions)
    _check_positions(road, examples)
    names = {name: _source_name(source) for name, source in sources.items()}
    return PreparedRun(
        recipe, names, examples, template, constraints, strengths, companions, collator
    )


def check_reader(reader: object, *, images: bool) -> None:
    """Refuse a processor for rows of text, and a tokenizer for rows with images.

    Raises:
        RoadError: for one of them.
    """
    if images and not is_processor(reader):
        raise RoadError(
            f"rows with images need the model's processor, {type(reader).__name__} is none: "
            "expected transformers' AutoProcessor.from_pretrained(…), or images=False"
        )
    if not images and is_processor(reader):
        raise RoadError(
            f"{type(reader).__name__} reads images, and the recipe's rows have none: expected "
            "images=True, or its tokenizer"
        )


def _relevant(
    setting: str, values: Mapping[str, Any], names: Collection[str], chosen: Collection[str]
) -> dict[str, Any]:
    return {name: value for name, value in values.items() if setting in chosen or name in names}


def _check_names(setting: str, strengths: Mapping[str, float], names: Sequence[str]) -> None:
    """Parse the names as a composition, and refuse "all" and labels, which are no subspaces."""
    Composition.parse(strengths, names)
    for name in strengths:
        if name not in names:
            raise RoadError(
                f"recipe setting {setting} names {quoted(name)}: expected one of {listing(names)}"
                f"{did_you_mean(name, names)}"
            )


def _check_companions(
    road: RoadModel, companions: Mapping[str, Any], rate: float, compositions: Collection[str]
) -> None:
    check_data_sets("companions", companions, compositions)
    Companions.parse(road, companions, rate)


def _tokenize_all(
    road: RoadModel, tokenizer: Any, sources: Any, recipe: Recipe
) -> Sequence[Example]:
    if not isinstance(sources, Mapping) or not sources:
        what = "no data given" if isinstance(sources, Mapping) else f"data {quoted(sources)}"
        raise RoadError(
            f"{what}: expected a mapping of compositions to sources, such as "
            "{'german': 'german.jsonl'}"
        )
    examples: list[Example] = []
    read: Any = load_conversations if recipe.data.images else load_rows
    cut: Any = tokenize_conversations if recipe.data.images else tokenize
    longest = recipe.data.max_completions
    for name, source in sources.items():
        if name.isidentifier() and name not in (*road.names, ALL, "none"):
            raise RoadError(
                f"unknown subspace {quoted(name)} of a data set: expected one of "
                f"{listing(road.names)}{did_you_mean(name, road.names)}; the recipe 'custom' gives "
                "every data set a subspace of its own name"
            )
        if not Composition.parse(name, road.names).terms:
            raise RoadError(
                f"data set {quoted(name)} trains nothing: expected a composition of {road.names}"
            )
        examples += cut(
            read(source, recipe.data.rows, recipe.data.rows_seed),
            tokenizer,
            name,
            template=recipe.data.template,
            max_length=recipe.data.max_length,
            max_completion=longest.get(name, recipe.data.max_completion),
            eos=recipe.data.ends(name),
        )
    return examples


def _check_positions(road: RoadModel, examples: Sequence[Example]) -> None:
    """Refuse an intervention that edits a token which a prompt of its subspaces does not have."""
    shortest: dict[str | None, int] = {}
    for example in examples:
        length = len(example.prompt)
        shortest[example.composition] = min(length, shortest.get(example.composition, length))
    for composition, length in shortest.items():
        acting = {name for name, _ in Composition.parse(composition, road.names).terms}
        for intervention in road.interventions:
            if acting & set(intervention.partition):
                intervention.position.check(torch.tensor([length]))


def _source_name(source: DataSource) -> str:
    return str(source) if isinstance(source, (str, Path)) else "rows in memory"
