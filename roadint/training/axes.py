"""Principal axes of hidden states, for interventions whose pairs are formed in them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from roadint.architecture.layers import site_path
from roadint.data.collate import Collator, Example, moved
from roadint.engines.transformers.partial import Enough, run_until_enough
from roadint.interventions.base import SubspaceIntervention
from roadint.interventions.interchange import RoadInterchange
from roadint.interventions.road import RoadIntervention
from roadint.model.road_model import RoadModel
from roadint.progress import track
from roadint.rotation.basis import Axes

_ROWS = 16  # of a batch


@torch.no_grad()
def fit_axes(
    road: RoadModel, examples: Sequence[Example], collate: Collator, *, quiet: bool = True
) -> None:
    """Make the basis of every site that wants the principal axes ("pca") those of the tokens that it edits, in the base model.

    Axes that are known already stay: values were learned in them.
    """
    for site in road.interventions:
        frame = site.frame if isinstance(site, (RoadIntervention, RoadInterchange)) else None
        if isinstance(frame, Axes) and not frame.measured:
            frame.fit(_hidden_at(road, site, examples, collate, quiet))


def _hidden_at(
    road: RoadModel,
    site: SubspaceIntervention,
    examples: Sequence[Example],
    collate: Collator,
    quiet: bool,
) -> Tensor:
    """[tokens, width] float32: what the site edits of these examples."""
    found: list[Tensor] = []
    edited = torch.zeros(0)

    def note(module: Any, args: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        found.append(hidden[edited.to(hidden.device)].float())
        raise Enough

    handle = road.model.get_submodule(
        site_path(road.model, site.layer, site.component)
    ).register_forward_hook(note)
    try:
        starts = range(0, len(examples), _ROWS)
        for start in track(starts, len(starts), "principal axes", quiet=quiet):
            batch = moved(collate(examples[start : start + _ROWS]), road.device)
            kept = batch["attention_mask"]
            edited = site.position.edited(
                (kept.cumsum(1) - 1).masked_fill(kept == 0, -1), batch["prompt_length"]
            )
            run_until_enough(road.model, input_ids=batch["input_ids"], attention_mask=kept)
    finally:
        handle.remove()
    return torch.cat(found)
