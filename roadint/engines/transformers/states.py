"""Hidden states from one forward pass into another: what RoadModel's `collect` and `interchange` do."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Literal, get_args

from torch import Tensor, nn

from roadint.engines.transformers.hidden_edit import Edit, Reading, Source
from roadint.engines.transformers.partial import Enough
from roadint.engines.transformers.passes import Passes, edited
from roadint.errors import check_known
from roadint.grammar.composition import ALL, Composition
from roadint.grammar.position import Position, Tokens
from roadint.interventions.base import SubspaceIntervention, subspace_names

Mode = Literal["parallel", "serial"]


def read(
    model: nn.Module,
    sites: Sequence[SubspaceIntervention],
    paths: Sequence[str],
    inputs: dict[str, Any],
    kept: Tensor,
    where: Position | Tokens | None,
    edit: Edit | None = None,
) -> list[list[Tensor]]:
    """For each site and each row, the hidden states [tokens, width] at `where` (the site's own position by default).

    paths: of the sites' modules. kept: [rows, columns], the tokens that are no padding. edit: of the same sites, acts in the pass.
    """
    everywhere = [Composition.parse(ALL, subspace_names(sites))] * len(kept)
    reading = Reading(sites, paths, everywhere, kept, positions=where, ahead=True)
    with suppress(Enough):
        edited(model, [reading] if edit is None else [edit, reading], Passes(kept.shape[1]))(
            **inputs, use_cache=False
        )
    return reading.found


def gather(
    takes: Sequence[bool],
    given: Sequence[Any],
    mode: Mode,
    read: Callable[[Any, Sequence[Source | None]], list[list[Tensor]]],
) -> list[Source | None]:
    """What each site takes into the base, read from the sources `given`, one for each site that takes one, or None.

    read: a source, and what each site takes in its pass → the hidden states at each site. Raises RoadError for an unknown mode.
    """
    check_known("mode", mode, get_args(Mode))
    nothing: list[Source | None] = [None] * len(takes)
    sources, found, last = nothing, None, None
    for site, source in zip(
        [site for site, taking in enumerate(takes) if taking], given, strict=True
    ):
        if source is None:
            continue
        if found is None or mode == "serial" or source is not last:
            found = read(source, sources if mode == "serial" else nothing)
        last = source
        sources = list(nothing if mode == "serial" else sources)
        sources[site] = found[site]
    return sources
