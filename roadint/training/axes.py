"""Principal axes of hidden states, for interventions whose pairs are formed in them."""

from collections.abc import Sequence

import torch

from roadint.data.collate import Example
from roadint.model.road_model import RoadModel
from roadint.training.states import Collate, edited_states


@torch.no_grad()
def fit_axes(
    road: RoadModel, examples: Sequence[Example], collate: Collate, *, quiet: bool = True
) -> None:
    """Measure the principal axes that interventions wait for, of the tokens that they edit.

    The hidden states are the base model's. Axes that are known already stay as they are, since
    values were learned in them.

    Args:
        road: The model and its interventions.
        examples: Tokenized rows.
        collate: Makes batches of the examples.
        quiet: Whether there is no progress bar.
    """
    for intervention in road.interventions:
        axes = intervention.unmeasured_axes()
        if axes is not None:
            task = "principal axes"
            axes.fit(edited_states(road, intervention, examples, collate, task=task, quiet=quiet))
