"""Steering vectors that are measured: the difference of means."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from roadint.data.collate import Example, tokenize
from roadint.data.sources import DataSource, load_rows
from roadint.errors import RoadError, listing, quoted
from roadint.interventions.steering import SteeringIntervention
from roadint.model.road_model import RoadModel
from roadint.recipes.recipe import Recipe
from roadint.training.preparation import prepare
from roadint.training.states import edited_states


@torch.no_grad()
def set_means(
    road: RoadModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Mapping[str, DataSource] | None,
    recipe: Recipe,
    *,
    against: DataSource = "bundled:english",
    quiet: bool = False,
) -> None:
    """Set steering vectors to differences of means, in place of training them.

    The vector of a subspace is the mean of the base model's hidden states at the edited tokens of
    its own data set, less that of a neutral one (activation addition, as in arXiv 2312.06681, whose
    pairs of answers are data sets here).

    Args:
        road: A model with steering vectors.
        tokenizer: The model's tokenizer.
        data: Subspace → source; the recipe's by default.
        recipe: The recipe, for how data are read.
        against: The source of the neutral rows, which have none of what subspaces ask for.
        quiet: Whether there is no progress bar.

    Raises:
        RoadError: where an intervention is no steering vector, or a subspace has no data set.
    """
    for edit in road.interventions:
        if not isinstance(edit, SteeringIntervention):
            raise RoadError(
                f"a difference of means is a steering vector, {type(edit).__name__} is none: "
                "expected kind 'steering'"
            )
    # Rows of other data sets, which training would preserve, are none of a subspace's own.
    run = prepare(road, tokenizer, data, recipe.override({"preserve": {}}))
    sets: dict[str, list[Example]] = {}
    for example in run.examples:
        sets.setdefault(str(example.composition), []).append(example)
    lacking = [name for name in road.names if name not in sets]
    if lacking:
        raise RoadError(
            f"a difference of means needs a data set for each of {listing(road.names)}, there are "
            f"{listing(sets)}: expected data for {quoted(lacking[0])}"
        )
    neutral = tokenize(
        load_rows(against, recipe.data.rows, recipe.data.rows_seed),
        tokenizer,
        None,
        template=run.template,
        max_length=recipe.data.max_length,
        max_completion=recipe.data.max_completion,
    )

    def mean(edit: Any, name: str, examples: Sequence[Example]) -> Tensor:
        task, total, count = f"means of {name}", torch.zeros(edit.width, dtype=torch.float64), 0
        for states in edited_states(road, edit, examples, run.collator, task=task, quiet=quiet):
            total += states.sum(0).cpu()
            count += len(states)
        return (total / count).float().to(edit.vectors.device)

    edits: Any = road.interventions
    for edit in edits:
        start = mean(edit, "neutral rows", neutral)
        for name in edit.partition:
            units = edit.partition.strengths({name: 1.0}).bool().to(start.device)
            edit.vectors[units] = mean(edit, name, sets[name]) - start
    road.template = run.template
