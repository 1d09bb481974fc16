"""The base model's hidden states where interventions act, which some of them are made from."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from roadint.architecture.layers import site_path
from roadint.architecture.outputs import hidden_of
from roadint.data.collate import Example, model_inputs, moved
from roadint.engines.transformers.partial import Enough, run_until_enough
from roadint.engines.transformers.view import view
from roadint.interventions.base import SubspaceIntervention
from roadint.model.road_model import RoadModel
from roadint.progress import track

_ROWS = 16  # of a batch
Collate = Callable[[Any], dict[str, Any]]


def edited_states(
    road: RoadModel,
    intervention: SubspaceIntervention,
    examples: Sequence[Example],
    collate: Collate,
    *,
    task: str,
    quiet: bool = True,
) -> Iterator[Float[Tensor, "tokens width"]]:
    """The hidden states that an intervention edits in examples, of the base model, float32.

    They come batch by batch, on the model's device: all of them may be more than it holds.

    Args:
        road: The model.
        intervention: One of its interventions.
        examples: Tokenized rows.
        collate: Makes batches of the examples.
        task: What the progress bar says.
        quiet: Whether there is no progress bar.
    """
    found: list[Tensor] = []
    edited = torch.zeros(0)

    def note(module: Any, args: Any, output: Any) -> None:
        hidden = hidden_of(output)
        found.append(hidden[edited.to(hidden.device)].float())
        raise Enough

    path = site_path(road.model, intervention.layer, intervention.component)
    noting = view(road.model, {road.model.get_submodule(path): [note]})
    starts = range(0, len(examples), _ROWS)
    for start in track(starts, len(starts), task, quiet=quiet):
        batch = moved(collate(examples[start : start + _ROWS]), road.device)
        mask = batch["attention_mask"]
        ranks = (mask.cumsum(1) - 1).masked_fill(mask == 0, -1)
        edited = intervention.position.edited(ranks, batch["prompt_length"])
        with torch.no_grad():
            run_until_enough(noting, **model_inputs(batch))
        yield found.pop()
