"""The edit of one call at the interventions' sites: which rows, which tokens, which rotations."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from roadint.engines.transformers.partial import Enough
from roadint.engines.transformers.passes import Passes
from roadint.engines.transformers.view import After
from roadint.errors import RoadError, quoted
from roadint.grammar.composition import Composition
from roadint.grammar.position import Position, Tokens
from roadint.interventions.base import Rows, SubspaceIntervention

Source = (
    Tensor | Sequence[Tensor]
)  # for each row [tokens, width], or [width]: one state for all of its tokens


class Edit:
    """What one forward or generate call changes.

    interventions: of the whole model, in order; paths: of the modules whose outputs they edit. compositions: one a row.
    kept: [rows, columns] bool or int, the tokens of the call that are no padding, those in a cache included.
    prompt_length: [rows] int, how many kept tokens are the prompt; all of them by default.
    learning: one a row, the compositions whose blocks get the row's gradient; all blocks by default.
    positions: where, instead of the interventions' own positions.
    sources: for each intervention, what it takes from: the hidden states of another input at each row's edited tokens, in order,
    [tokens, width] a row, or [width], one state for all of them, generated ones too; None where it takes nothing (an interchange
    does not act then). ahead: whether tokens are still to be generated.
    Raises RoadError where a position is outside a row, or a row has more or fewer edited tokens than its source.
    """

    def __init__(
        self,
        interventions: Sequence[SubspaceIntervention],
        paths: Sequence[str],
        compositions: Sequence[Composition],
        kept: Tensor,
        prompt_length: Tensor | None = None,
        learning: Sequence[Composition] | None = None,
        positions: Position | Tokens | None = None,
        sources: Sequence[Source | None] | None = None,
        *,
        ahead: bool = False,
    ) -> None:
        self.columns = kept.shape[1]
        kept = kept.bool()
        self._rank = (kept.long().cumsum(dim=1) - 1).masked_fill(~kept, -1)
        self._kept_count = kept.sum(dim=1)
        self._prompt_length = (
            self._kept_count if prompt_length is None else prompt_length.to(kept.device)
        )
        self._sites: list[_Site] = []
        given: Sequence[Source | None] = sources or [None] * len(interventions)
        for intervention, path, source in zip(interventions, paths, given, strict=True):
            acts = [
                any(name in intervention.partition for name, _ in composition.terms)
                for composition in compositions
            ]
            constant = intervention.source_representation is not None
            if (
                intervention.takes_source
                and sources is not None
                and source is None
                and not constant
            ):
                acts = [False] * len(acts)
            strengths = intervention.strengths(compositions)
            acting = torch.tensor(acts, device=kept.device)
            position = positions or intervention.position
            if (
                prompt_length is None
                and not ahead
                and any(acts)
                and getattr(position, "phase", None) == "generated"
            ):
                raise RoadError(
                    f"the intervention at layer {intervention.layer} edits generated tokens alone, and this call has none: "
                    "give prompt_length, what of each row is the prompt, or let generate run"
                )
            position.check(
                self._prompt_length if isinstance(position, Tokens) else self._prompt_length[acting]
            )
            learned = None if learning is None else intervention.strengths(learning) != 0
            taken = None
            if source is not None:
                _check_source(source, intervention)
                where = position.edited(self._rank, self._prompt_length) & acting[:, None]
                taken = Taken.of(source, where, position.after_prompt, intervention.layer)
            rows = intervention.rows(strengths, learned)
            self._sites.append(_Site(intervention, path, position, rows, acting, any(acts), taken))

    @property
    def learns(self) -> bool:
        """Whether an intervention that acts has values that ask for gradients."""
        return any(
            site.acts and any(each.requires_grad for each in site.intervention.parameters())
            for site in self._sites
        )

    def hooks(self, model: nn.Module, passes: Passes) -> Iterator[tuple[nn.Module, After]]:
        """What runs after the modules at which something acts."""
        for index, site in enumerate(self._sites):
            if site.acts:
                yield model.get_submodule(site.path), self._hook_of(index, passes)

    def finish(self, passes: Passes) -> None:
        """Raises RoadError where a pass went by an edit."""
        for site in self._sites:
            if site.acts and site.passed[0] != passes.number:
                raise RoadError(
                    f"{site.path} did not run in this pass, so the edit at layer {site.intervention.layer} did not act: "
                    "expected a model that calls it for all tokens"
                )

    def _hook_of(self, index: int, passes: Passes) -> After:
        site = self._sites[index]

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            site.passed[0] = passes.number
            passes.check_gradients(site.path)
            several = isinstance(output, (tuple, list))
            hidden = output[0] if several else output
            edited = self._edited(index, hidden, passes)
            if edited is None:
                return None
            return type(output)([edited, *output[1:]]) if several else edited

        return hook

    def _edited(self, index: int, hidden: Tensor, passes: Passes) -> Tensor | None:
        """The edited hidden states [rows, columns, width], or None where this pass holds no token to edit."""
        site = self._sites[index]
        rows, columns, copies = self._places(site, hidden, passes)
        if not len(rows):
            return None
        own = rows // copies
        source = None if site.taken is None else site.taken.at(own, columns + passes.start)
        edited = site.intervention.edit(hidden[rows, columns], site.rows.row(own), source)
        return hidden.index_put((rows, columns), edited)

    def _places(self, site: "_Site", hidden: Tensor, passes: Passes) -> tuple[Tensor, Tensor, int]:
        """The rows and columns of the tokens of this pass to edit, and how often each row of the call is repeated in it."""
        wanted = (passes.rows, passes.columns, site.intervention.width)
        if not torch.is_tensor(hidden) or tuple(hidden.shape) != wanted:
            shape = tuple(hidden.shape) if torch.is_tensor(hidden) else type(hidden).__name__
            raise RoadError(
                f"{site.path} gives hidden states of shape {shape}: expected [rows, columns, width], so {wanted}"
            )
        # Beams and returned sequences repeat each row in place.
        copies, left = divmod(passes.rows, len(site.acting))
        if left or not copies:
            raise RoadError(
                f"a pass of {passes.rows} rows in a call of {len(site.acting)}: expected each as often as any other"
            )
        start, stop = passes.start, passes.start + passes.columns
        if passes.number == 1 and stop > self.columns and not passes.drafted:
            raise RoadError(
                f"the model runs {stop} columns for the {self.columns} of the call: it puts others beside them"
            )
        if start >= self.columns and not site.position.after_prompt:
            nowhere = torch.empty(0, dtype=torch.long, device=hidden.device)
            return nowhere, nowhere, 1
        where = (
            site.position.edited(self._rank_of(start, stop), self._prompt_length)
            & site.acting[:, None]
        )
        rows, columns = (
            where.repeat_interleave(copies, dim=0).to(hidden.device).nonzero(as_tuple=True)
        )
        return rows, columns, copies

    def _rank_of(self, start: int, stop: int) -> Tensor:
        """[rows, stop − start]: the rank of each token of the pass; columns past the call's own are generated ones."""
        given = self._rank[:, start:stop]
        new = (
            torch.arange(max(start, self.columns), max(stop, self.columns), device=given.device)
            - self.columns
        )
        return torch.cat([given, self._kept_count[:, None] + new], dim=1)


class Reading(Edit):
    """The hidden states at the sites' tokens, read and left as they are: `found`, by site, [tokens, width] for each row.

    Raises Enough inside the forward pass when all sites are read; no layer above them needs to run.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.found: list[list[Tensor]] = [[] for _ in self._sites]

    def _edited(self, index: int, hidden: Tensor, passes: Passes) -> None:
        rows, columns, _ = self._places(self._sites[index], hidden, passes)
        counts = torch.bincount(rows, minlength=len(hidden)).tolist()
        self.found[index] = list(torch.split(hidden[rows, columns], counts))
        if all(self.found):
            raise Enough


@dataclass(frozen=True)
class Taken:
    """A source's hidden states, beside the base's tokens that take from them. order: [rows, columns], which of its row's, or −1."""

    states: Tensor  # [rows, most, width]
    order: Tensor

    @classmethod
    def of(cls, source: Source, where: Tensor, after_prompt: bool, layer: int) -> "Taken":
        """where: [rows, columns] bool, the base's tokens. after_prompt: whether generated ones follow.

        Raises RoadError where their number is not the source's.
        """
        if len(source) != len(where):
            raise RoadError(
                f"a source of {len(source)} rows for {len(where)} rows of the base: expected one a row"
            )
        order = (where.long().cumsum(1) - 1).masked_fill(~where, -1)
        for row, (states, count) in enumerate(zip(source, where.sum(1).tolist(), strict=True)):
            if states.ndim == 1:
                order[row] = 0
            elif after_prompt:
                raise RoadError(
                    f"the interchange at layer {layer} edits generated tokens, for which the source of row {row} has no states: "
                    "expected one for all, [width]"
                )
            elif count and len(states) != count:
                raise RoadError(
                    f"row {row} has {count} tokens to edit at layer {layer}, its source {len(states)}: expected as many; "
                    "name the source's own with source_positions"
                )
        listed = [states[None] if states.ndim == 1 else states for states in source]
        states = nn.utils.rnn.pad_sequence(listed, batch_first=True)
        return cls(states, order.to(states.device))

    def at(self, rows: Tensor, columns: Tensor) -> Tensor:
        """[tokens, width], for the base's tokens in these rows and columns; generated ones come after the last column."""
        found: Tensor = self.states[
            rows, self.order[rows, columns.clamp(max=self.order.shape[1] - 1)]
        ]
        return found


@dataclass(frozen=True)
class _Site:
    """One intervention of the call: where it acts, what each row is edited with, which rows (and whether any), what it takes.

    passed: the number of the last pass that came by.
    """

    intervention: SubspaceIntervention
    path: str
    position: Position | Tokens
    rows: Rows
    acting: Tensor
    acts: bool
    taken: Taken | None
    passed: list[int] = field(default_factory=lambda: [0])


def _check_source(source: Any, intervention: SubspaceIntervention) -> None:
    """Raises RoadError for what are no hidden states of each row."""
    rows = (
        list(source)
        if isinstance(source, (list, tuple)) or (torch.is_tensor(source) and source.ndim > 1)
        else [None]
    )
    for row in rows:
        if (
            not torch.is_tensor(row)
            or row.ndim not in (1, 2)
            or row.shape[-1] != intervention.width
            or row.is_meta
        ):
            given = (
                f"shape {tuple(row.shape)}"
                if torch.is_tensor(row)
                else quoted(row if isinstance(source, (list, tuple)) else source)
            )
            raise RoadError(
                f"the source at layer {intervention.layer} has {given} for a row: "
                f"expected hidden states [tokens, {intervention.width}] or [{intervention.width}], as collect returns them"
            )
