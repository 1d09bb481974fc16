"""Look inside: edited tokens, the next token, the logit lens, the blocks."""

from collections.abc import Sequence

from roadint.data.prompts import batch_prompts
from roadint.demo import views
from roadint.demo.service import Service
from roadint.errors import RoadError
from roadint.inspection.angles import turns_blocks
from roadint.inspection.lens import logit_lens, next_tokens
from roadint.interventions.base import SubspaceIntervention
from roadint.interventions.sums import label_of
from roadint.plots import block_figure


def inside(service: Service, prompt: str, texts: Sequence[str], labels: Sequence[str]) -> list[str]:
    """What compositions do to a prompt, as HTML.

    Args:
        service: The model and its checkpoints.
        prompt: An instruction.
        texts: Compositions.
        labels: The checkpoints that the compositions may name.

    Returns:
        The prompt's tokens, the next tokens, the lens, and the picture of the blocks (empty where
        nothing turns blocks).

    Raises:
        RoadError: for bad input.
    """
    batcher = service.batcher
    road, tokenizer = batcher.road, batcher.tokenizer
    batcher.check(prompt)
    parsed = list(dict.fromkeys(service.parse(text, labels) for text in texts))
    if not parsed:
        raise RoadError("nothing to look at: tick a composition on the first page")
    used = {name.partition("@")[2] for composition in parsed for name, _ in composition.terms}
    with service.using(parsed):
        batcher.check(prompt, parsed)
        with batcher.lock:
            acting = [
                intervention
                for intervention in road.interventions
                if label_of(intervention) in ("", *used)
            ]
            ids = batch_prompts(tokenizer, road.template, [prompt])["input_ids"][0].tolist()
            moved = next_tokens(road, tokenizer, prompt, parsed)
            lens = logit_lens(road, tokenizer, prompt, parsed)
    lowest = min((intervention.layer for intervention in acting), default=0)
    edited = {index for edit in acting for index in edit.position.indices(len(ids))}
    return [
        views.prompt_tokens([str(tokenizer.decode([token])) for token in ids], sorted(edited)),
        views.next_token_tables(moved),
        views.lens_table([str(composition) for composition in parsed], lens, lowest),
        _blocks_picture(acting),
    ]


def _blocks_picture(interventions: Sequence[SubspaceIntervention]) -> str:
    if not any(turns_blocks(intervention) for intervention in interventions):
        return ""
    return views.picture(
        block_figure(interventions)._repr_png_(),
        "Angle and scale of every block, coloured by subspace",
    )
