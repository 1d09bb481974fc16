"""Rows of the table of hidden-state edits: a composition, at tokens of one code, at all sites."""

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from roadint.engines.vllm.rows.places import Place, Places, check_variant, identity, put
from roadint.engines.vllm.rows.plan import Edit, Plan
from roadint.engines.vllm.served import Served, pairs_of
from roadint.errors import RoadError
from roadint.grammar.position import Position
from roadint.rotation.basis import Frame
from roadint.rotation.rotation import Rotation

Site = tuple[int, str]
"""A layer, from 0, and a component of it."""


class HiddenRows:
    """The sites of an engine, and the rows that its table of hidden-state edits holds.

    Args:
        served: The checkpoints whose sites are armed.
        layers: Further layers, whose outputs may be edited in the identity basis.
        width: The width of the hidden states.
    """

    def __init__(self, served: Iterable[Served], layers: Sequence[int], width: int) -> None:
        served = list(served)
        self.places = Places()
        self._frames: dict[Hashable, Frame | None] = {}
        self.mirrored = False  # whether a row may need v
        for checkpoint in served:
            for index in range(len(checkpoint.interventions)):
                part: Any = checkpoint.interventions[index]
                key = _key(checkpoint, index)
                self.places.add(key, 0, width, part.group)
                self._frames.setdefault(key, part.frame)
                self.mirrored |= part.variant != "road_1"
        for layer in layers:
            key = ((layer, "block_output"), ("identity", 0, 2), None)
            self.places.add(key, 0, width, 2)
            self._frames.setdefault(key, None)
        self._positions = max(1, len(_positions(served)))

    @property
    def codes(self) -> int:
        """How many rows one request may need at once, at most."""
        return int(2**self._positions) - 1

    @property
    def sites(self) -> list[Site]:
        """All sites that are edited."""
        return list(dict.fromkeys(key[0] for key in self.places.by_key))  # type: ignore[index]

    def at(self, site: Site) -> list[tuple[Place, Frame | None]]:
        """The places of a site with their bases, in the order in which they act."""
        return [
            (place, self._frames[key])
            for key, place in self.places.by_key.items()
            if key[0] == site  # type: ignore[index]
        ]

    def check(self, served: Served, others: Iterable[Served] = ()) -> None:
        """Refuse a checkpoint whose edits have no place.

        Args:
            served: The checkpoint.
            others: Those that are served, with which a request may sum it.

        Raises:
            RoadError: where an edit has no place.
        """
        of_others = _positions(others)
        own = [position for position in _positions([served]) if position not in of_others]
        if own and len(of_others) + len(own) > self._positions:
            raise RoadError(
                f"{served.path} edits at {own[0]} ({own[0].phase}), a further position than those "
                f"of the checkpoints that the engine was started with: start it with {served.path}"
            )
        for index, part in enumerate(served.interventions):
            if _key(served, index) not in self.places.by_key:
                raise RoadError(
                    f"{served.path} edits the {part.component} of layer {part.layer} in the basis "
                    f"{part.basis.kind!r}, for which the engine has no place: start it with "  # type: ignore[union-attr]
                    f"{served.path}, or for the identity basis with layers=[{part.layer}]"
                )
            check_variant(part.variant, self.mirrored, served.path)  # type: ignore[arg-type]

    def rows(self, wanted: Sequence[tuple[Plan, int]]) -> Rotation:
        """The rotations of all places, end to end, at tokens of a code: a row for each of `wanted`.

        An intervention makes those of all rows at once.

        Args:
            wanted: Plans and codes.
        """
        rows = identity(len(wanted), self.places.blocks)
        for (served, index), acting in _by_intervention(wanted).items():
            part: Any = served.interventions[index]
            made: Rotation = part.rows(part.strengths([edit.composition for _, edit in acting]))
            place = self.places.by_key[_key(served, index)]
            rows = put(rows, ([number for number, _ in acting], place.blocks), made)
        return rows


def _by_intervention(
    wanted: Sequence[tuple[Plan, int]],
) -> dict[tuple[Served, int], list[tuple[int, Edit]]]:
    """The edits of each intervention and the numbers of their rows, in the order in which they act.

    Only within a checkpoint does that order matter.
    """
    found: dict[Served, dict[int, list[tuple[int, Edit]]]] = {}
    for number, (plan, code) in enumerate(wanted):
        for edit in plan.edits_of(code):
            of_served = found.setdefault(edit.served, {})
            of_served.setdefault(edit.index, []).append((number, edit))
    return {
        (served, index): of_served[index]
        for served, of_served in found.items()
        for index in sorted(of_served)
    }


def _positions(served: Iterable[Served]) -> list[Position]:
    """The different positions of checkpoints."""
    parts = (part for checkpoint in served for part in checkpoint.interventions)
    return list(dict.fromkeys(part.position for part in parts))


def _key(served: Served, index: int) -> Hashable:
    part: Any = served.interventions[index]
    # A measured basis is one checkpoint's own.
    own = (served.fingerprint, index) if part.basis.kind == "pca" else None
    return (part.layer, part.component), pairs_of(part), own
