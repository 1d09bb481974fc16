"""Rows of other data sets whose answers a composition is to leave as they are, once begun."""

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from roadint.data.collate import Example
from roadint.errors import RoadError, did_you_mean, listing, quoted
from roadint.recipes.recipe import Recipe


def preserving(
    examples: Sequence[Example], preserve: Mapping[str, Sequence[str]], recipe: Recipe
) -> list[Example]:
    """More examples of some compositions, which are rows of other data sets.

    Their first tokens are given, the next ones are scored: a composition learns from them not to
    change what follows, whatever its own rows are about. Its own rows still teach how an answer
    begins.

    Args:
        examples: The examples of all data sets.
        preserve: Composition → the data sets.
        recipe: The recipe, with the number of rows, the scored tokens and the seed of the draw.

    Returns:
        Rows of the data sets in turns, drawn at random, each once before one comes twice; those
        too short for a scored token are left out.

    Raises:
        RoadError: where there is no such data set, or none of its rows is long enough.
    """
    sets: dict[str, list[Example]] = {}
    for example in examples:
        sets.setdefault(str(example.composition), []).append(example)
    first, end = recipe.data.preserve_tokens
    more = []
    for name, others in preserve.items():
        _check(name, others, sets)
        draw = random.Random(recipe.optimisation.seed)
        queues = []
        for other in others:
            usable = [example for example in sets[other] if len(example.completion) > first]
            if not usable:
                raise RoadError(
                    f"preserve_tokens={recipe.data.preserve_tokens}: no completion of "
                    f"{quoted(other)} has more than {first} tokens; expected a smaller first token"
                )
            queues.append(draw.sample(usable, len(usable)))
        for number in range(round(recipe.data.preserve_rate * len(sets[name]))):
            turn, queue = divmod(number, len(queues))
            drawn = queues[queue][turn % len(queues[queue])]
            completion = drawn.completion[:end]
            more.append(replace(drawn, completion=completion, composition=name, first=first))
    return more


def _check(name: str, others: Sequence[str], sets: Mapping[str, Sequence[Example]]) -> None:
    check_data_sets("preserve", [name], sets)
    check_data_sets(f"preserve.{name}", others, sets)
    if not others or name in others:
        rest = sorted(set(sets) - {name})
        raise RoadError(
            f"recipe setting preserve.{name}={list(others)}: expected other data sets than "
            f"{quoted(name)}{f', such as {listing(rest)}' if rest else ', and there is none'}"
        )


def check_data_sets(setting: str, names: Iterable[str], sets: Collection[str]) -> None:
    """Check that a setting of a recipe names data sets that there are.

    Args:
        setting: The setting.
        names: The names.
        sets: The data sets.

    Raises:
        RoadError: for a name that is none.
    """
    for name in names:
        if name not in sets:
            raise RoadError(
                f"recipe setting {setting} names {quoted(name)}, which is no data set here: "
                f"expected one of {listing(sorted(sets))}{did_you_mean(name, sets)}"
            )
