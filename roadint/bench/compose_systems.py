"""The systems of `roadint bench compose`: what learns the same properties by other means."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from roadint.bench.compose_report import PROMPT, ROAD
from roadint.errors import RoadError, listing
from roadint.model.pretrained import load
from roadint.model.road_model import RoadModel
from roadint.recipes.edit import LINEAR
from roadint.recipes.recipe import Recipe
from roadint.training.means import set_means
from roadint.training.run import train

RATES = {"loreft": 5e-3, "lora": 5e-4}
"""Learning rates of the methods that train beside RoAd, whose rates are the recipe's."""

_LORA_RANK, _LOREFT_RANK = 8, 4  # LoReFT's is of each subspace

System = tuple[RoadModel, PreTrainedTokenizerBase, int]
"""A model with one name a data set, its tokenizer, and how many numbers it has learned."""


def _road(recipe: Recipe, rate: float | None) -> System:
    return _trained(recipe if rate is None else recipe.override({"lr": rate, "lrs": {}}))


def _loreft(recipe: Recipe, rate: float | None) -> System:
    """LoReFT at the recipe's sites, where a subspace is some directions."""
    together = [list(edit["subspaces"]) for edit in recipe.edit.interventions()]
    kind = {"kind": "loreft", **_units(together, _LOREFT_RANK)}
    return _trained(_rival(recipe, rate or RATES["loreft"], kind))


def _lora(recipe: Recipe, rate: float | None) -> System:
    """A LoRA on all linear layers for every data set; compositions are their sums."""
    kind = {"kind": LINEAR, "layers": None, "lora_rank": _LORA_RANK, "lora_alpha": 2.0 * _LORA_RANK}
    chosen = _rival(recipe, rate or RATES["lora"], kind)
    road, tokenizer = _untrained(chosen)
    still = 0
    for adapter in road.adapters.values():  # whose rotations stay the identity
        for parameter in (adapter.theta, adapter.alpha):
            parameter.requires_grad_(False)
            still += parameter.numel()
    train(road, tokenizer, None, chosen, quiet=True)
    return road, tokenizer, road.trainable_count - still


def _means(recipe: Recipe, rate: float | None) -> System:
    """A vector for every data set, added from the last token of the prompt on."""
    del rate  # nothing trains
    kind = {"kind": "steering", **_units([recipe.names()], 1)}
    layers = (recipe.edit.layers or [9])[-1:]
    place = {"layers": layers, "position": "last", "phase": "both", "places": {}}
    chosen = _rival(recipe, recipe.optimisation.lr, {**kind, **place})
    road, tokenizer = _untrained(chosen)
    set_means(road, tokenizer, None, chosen, quiet=True)
    return road, tokenizer, road.trainable_count


_SYSTEMS: Mapping[str, Callable[[Recipe, float | None], System]] = {
    ROAD: _road,
    "loreft": _loreft,
    "lora": _lora,
    "means": _means,
}

METHODS = (*_SYSTEMS, PROMPT)


def system_of(method: str, recipe: Recipe, rate: float | None = None) -> System:
    """Learn the data sets of a recipe by a method.

    Args:
        method: One of METHODS, but not "prompt".
        recipe: A recipe of subspaces.
        rate: A learning rate in place of the method's own.

    Raises:
        RoadError: where the recipe does not fit.
    """
    return _SYSTEMS[method](recipe, rate)


def base_of(recipe: Recipe) -> System:
    """The base model, which has learned nothing, with the recipe's template."""
    model, tokenizer = load(recipe.model.name, dtype=recipe.model.dtype)
    road = RoadModel(model, [])
    road.template = recipe.data.template
    return road, tokenizer, 0


def check_recipe(recipe: Recipe) -> None:
    """Check that a recipe has subspaces, each with a data set of its own.

    Raises:
        RoadError: where it does not.
    """
    if recipe.edit.kind != ROAD or recipe.task.name:
        raise RoadError(
            f"recipe kind {recipe.edit.kind!r}: expected a recipe of subspaces, of kind 'road'"
        )
    if set(recipe.names()) != set(recipe.data.sources):
        raise RoadError(
            f"the recipe has subspaces {listing(recipe.names())} and data sets "
            f"{listing(recipe.data.sources)}: expected a data set for every subspace"
        )


def _units(together: Sequence[Sequence[str]], each: int) -> dict[str, Any]:
    """As many units for every subspace, and a rank for as many as act together at one place."""
    ranges = {
        name: f"[{number * each}, {(number + 1) * each})"
        for names in together
        for number, name in enumerate(names)
    }
    return {"rank": each * max(map(len, together)), "subspaces": ranges}


def _rival(recipe: Recipe, rate: float, settings: Mapping[str, Any]) -> Recipe:
    """The recipe of another method: the same rows, steps and schedule, one rate for all."""
    own = {"lr": rate, "lrs": {}, "strengths": {}, "max_log_scale": None}
    return recipe.override({**settings, **own})


def _untrained(recipe: Recipe) -> tuple[RoadModel, PreTrainedTokenizerBase]:
    model, tokenizer = load(recipe.model.name, dtype=recipe.model.dtype)
    return recipe.on(model), tokenizer


def _trained(recipe: Recipe) -> System:
    road, tokenizer = _untrained(recipe)
    train(road, tokenizer, None, recipe, quiet=True)
    return road, tokenizer, road.trainable_count
