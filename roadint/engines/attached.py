"""The interventions and adapters of a model at one moment: what a call parses and lowers."""

from collections.abc import Sequence
from dataclasses import dataclass

from roadint.engines.adapters import Adapters, LoweredAdapters
from roadint.engines.call import Call
from roadint.engines.interventions import Interventions, LoweredIntervention
from roadint.errors import RoadError, quoted
from roadint.grammar.composition import ALL, Composition, CompositionLike, parse_rows

Compose = CompositionLike | Sequence[CompositionLike]
"""One composition for all rows, or a list or tuple of one a row."""


@dataclass(frozen=True)
class Lowered:
    """What a call does at the sites of interventions and at linear layers."""

    interventions: Sequence[LoweredIntervention]
    adapters: LoweredAdapters | None


@dataclass(frozen=True)
class Attached:
    """The interventions and adapters of a model, which every call reads once."""

    interventions: Interventions
    adapters: Adapters

    @property
    def names(self) -> list[str]:
        """The names that a composition may use."""
        return [*self.interventions.names, *self.adapters.names]

    def parse(self, compose: Compose, rows: int) -> tuple[Composition, ...]:
        """Read the compositions of a batch, one a row.

        Raises:
            RoadError: for unknown names, for a composition whose result would depend on the order
                of its names, and for the base model while adapters are merged.
        """
        merged = self.adapters.merged
        reason = ""
        if merged:
            reason = (
                f"; adapters are merged into the weights, as '{merged.composition}': "
                "unmerge() first"
            )
        try:
            compositions = parse_rows(compose, rows, self.names)
        except RoadError as error:
            raise RoadError(f"{error}{reason}") from None
        if merged:
            _check_not_base(compose, compositions, reason)
        self.interventions.check(compositions)
        self.adapters.check(compositions)
        return tuple(compositions)

    def parse_learning(self, learning: Compose, rows: int) -> tuple[Composition, ...] | None:
        """Read which blocks get each row's gradient, one composition a row; None for all blocks."""
        if isinstance(learning, str) and learning == ALL:
            return None
        return tuple(parse_rows(learning, rows, self.names))

    def lower(self, call: Call) -> Lowered:
        """What a call does.

        Raises:
            RoadError: as `Interventions.lower` and `Adapters.lower`.
        """
        return Lowered(self.interventions.lower(call), self.adapters.lower(call))


def _check_not_base(compose: Compose, compositions: Sequence[Composition], reason: str) -> None:
    texts = compose if isinstance(compose, (list, tuple)) else [compose]
    for text, composition in zip(texts, compositions, strict=False):
        if not composition.terms and text != ALL:
            raise RoadError(
                f"composition {quoted(text)} is the base model{reason}, or compose 'all'"
            )
