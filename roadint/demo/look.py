"""Look inside: which tokens are edited, how the next token moves, what the layers above would say, and the blocks themselves."""

from collections.abc import Sequence
from typing import Any

from roadint.data.prompts import batch_prompts
from roadint.demo import views
from roadint.demo.service import Service
from roadint.errors import RoadError
from roadint.inspection.lens import logit_lens, next_tokens
from roadint.interventions.road import RoadIntervention
from roadint.interventions.sums import label_of
from roadint.model.description import edited_tokens
from roadint.plots import block_figure


def inside(service: Service, prompt: str, texts: Sequence[str], labels: Sequence[str]) -> list[Any]:
    """HTML of the prompt's tokens, of the next tokens, of the lens and of the blocks. Raises RoadError for bad input."""
    engine = service.batcher
    road, tokenizer = engine.road, engine.tokenizer
    engine.check(prompt)
    parsed = list(dict.fromkeys(service.parse(each, labels) for each in texts))
    if not parsed:
        raise RoadError("nothing to look at: tick a composition on the first page")
    names = [str(each) for each in parsed]
    used = {name.partition("@")[2] for each in parsed for name, _ in each.terms}
    with service.using(parsed):
        engine.check(prompt, parsed)
        with engine.lock:
            own = [site for site in road.sites if label_of(site) in ("", *used)]
            ids = batch_prompts(tokenizer, road.template, [prompt])["input_ids"][0].tolist()
            edited = {
                place
                for site in own
                for place, flag in enumerate(edited_tokens(site, len(ids)))
                if flag
            }
            moved = next_tokens(road, tokenizer, prompt, parsed)
            lens = logit_lens(road, tokenizer, prompt, parsed)
    lowest = min((site.layer for site in own), default=0)
    turning = [site for site in own if isinstance(site, RoadIntervention)]
    return [
        views.prompt_tokens([str(tokenizer.decode([token])) for token in ids], sorted(edited)),
        views.next_token_tables(moved),
        views.lens_table(names, lens, lowest),
        views.picture(
            block_figure(turning)._repr_png_(),
            "Angle and scale of every block, coloured by subspace",
        )
        if turning
        else "",
    ]
