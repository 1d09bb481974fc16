"""Principal axes of hidden states, for interventions whose pairs are formed in them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from roadint.architecture.layers import site_path
from roadint.architecture.outputs import hidden_of
from roadint.data.collate import Example, model_inputs, moved
from roadint.engines.transformers.partial import Enough, run_until_enough
from roadint.interventions.base import SubspaceIntervention
from roadint.model.road_model import RoadModel
from roadint.progress import track

_ROWS = 16  # of a batch
Collate = Callable[[Any], dict[str, Any]]


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
            axes.fit(_hidden_at(road, intervention, examples, collate, quiet))


def _hidden_at(
    road: RoadModel,
    intervention: SubspaceIntervention,
    examples: Sequence[Example],
    collate: Collate,
    quiet: bool,
) -> Float[Tensor, "tokens width"]:
    """The hidden states that an intervention edits in these examples, float32."""
    parts: list[Tensor] = []
    edited = torch.zeros(0)

    def note(module: Any, args: Any, output: Any) -> None:
        hidden = hidden_of(output)
        parts.append(hidden[edited.to(hidden.device)].float())
        raise Enough

    path = site_path(road.model, intervention.layer, intervention.component)
    handle = road.model.get_submodule(path).register_forward_hook(note)
    try:
        starts = range(0, len(examples), _ROWS)
        for start in track(starts, len(starts), "principal axes", quiet=quiet):
            batch = moved(collate(examples[start : start + _ROWS]), road.device)
            mask = batch["attention_mask"]
            ranks = (mask.cumsum(1) - 1).masked_fill(mask == 0, -1)
            edited = intervention.position.edited(ranks, batch["prompt_length"])
            run_until_enough(road.model, **model_inputs(batch))
    finally:
        handle.remove()
    return torch.cat(parts)
