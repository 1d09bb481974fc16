"""Rows of the table of adapters: a composition's rotations at all linear layers of one process."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from roadint.adapters.adapter import RoadAdapter
from roadint.adapters.products import by_layout, product
from roadint.engines.vllm.rows.places import Place, Places, check_variant, identity, put
from roadint.engines.vllm.rows.plan import Plan
from roadint.engines.vllm.rows.shards import Piece
from roadint.engines.vllm.served import Served
from roadint.errors import RoadError, did_you_mean
from roadint.rotation.rotation import Rotation, stacked

Pieces = Mapping[str, Sequence[Piece]]
"""Target → where its output lies in the layers of this process."""


class LinearRows:
    """The linear layers of an engine that adapters turn, and the rows of its table.

    Args:
        served: The checkpoints whose targets are armed.
        pieces: All targets that the model has.
        widths: Module → the width of its output in this process.
        reserve: Whether all of them are armed, for checkpoints that are loaded later.
        name_of: Makes the engine's name of a target of transformers' name of it, or refuses it.

    Raises:
        RoadError: where an adapter does not fit the model.
    """

    def __init__(
        self,
        served: Iterable[Served],
        pieces: Pieces,
        widths: Mapping[str, int],
        reserve: bool,
        name_of: Callable[[str], str] = str,
    ) -> None:
        self.places = Places()
        self.mirrored = False  # whether a row may need v
        self._pieces, self._widths, self._name_of = pieces, widths, name_of
        self._sources: dict[Hashable, Int[Tensor, " blocks"] | None] = {}
        for checkpoint in served:
            for adapter in checkpoint.adapters:
                for _, group, piece in self._parts(adapter, checkpoint.path):
                    self._add(piece, group)
                self.mirrored |= adapter.variant != "road_1"
        for listed in pieces.values() if reserve else ():
            for piece in listed:
                self._add(piece, 2)

    def _add(self, piece: Piece, group: int) -> None:
        offset, width = self._range(piece, group)
        self.places.add((piece.module, offset, group), offset, width, group)

    def _range(self, piece: Piece, group: int) -> tuple[int, int]:
        """Neighbouring dims are paired everywhere in a layer, in one range; others in a piece."""
        return (0, self._widths[piece.module]) if group == 2 else (piece.offset, piece.width)

    @property
    def modules(self) -> list[str]:
        """The modules that are armed."""
        return list(dict.fromkeys(key[0] for key in self.places.by_key))  # type: ignore[index]

    def modules_of(self, served: Served) -> set[str]:
        """The modules that a checkpoint's adapters turn."""
        parts = (part for one in served.adapters for part in self._parts(one, served.path))
        return {piece.module for _, _, piece in parts}

    def at(self, module: str) -> list[Place]:
        """The places of a module."""
        return [place for key, place in self.places.by_key.items() if key[0] == module]  # type: ignore[index]

    def check(self, served: Served) -> None:
        """Refuse a checkpoint whose adapters have no place.

        Raises:
            RoadError: where one has none.
        """
        for adapter in served.adapters:
            for path, group, piece in self._parts(adapter, served.path):
                if (piece.module, self._range(piece, group)[0], group) not in self.places.by_key:
                    raise RoadError(
                        f"{served.path}: adapter {adapter.name!r} turns {path} in groups of "
                        f"{group} dims, for which the engine has no place: start it with "
                        f"{served.path}, or for neighbouring dims with adapters=true"
                    )
            check_variant(adapter.variant, self.mirrored, served.path)

    def rows(self, plans: Sequence[Plan]) -> Rotation:
        """The rotations of all places, end to end: a row for each of the plans."""
        return stacked([self._row(plan) for plan in plans])

    def _row(self, plan: Plan) -> Rotation:
        row: Rotation | None = None
        for served, terms in plan.adapters:
            acting = [served.adapters_by_name[name] for name, _ in terms]
            for members in by_layout(acting):
                names = {adapter.name: adapter for adapter in members}
                whole = product(names, [term for term in terms if term[0] in names])
                local = self._local(members[0], whole, served.path)
                row = local if row is None else put(row, slice(None), local)
        return identity(self.places.blocks) if row is None else row

    def _local(self, adapter: RoadAdapter, whole: Rotation, path: str) -> Rotation:
        """The part of an adapter's rotations that this process has, in the order of the table."""
        source = self._source(adapter, path)
        if source is None:
            return whole
        here = source >= 0
        index = source.clamp(min=0)
        u = torch.where(here, whole.u[index], 1)
        return Rotation(u, None if whole.v is None else torch.where(here, whole.v[index], 0))

    def _source(self, adapter: RoadAdapter, path: str) -> Int[Tensor, " blocks"] | None:
        """For every block of the table its number in the adapter's rotations; −1 for none.

        None where both have the same blocks in the same order.
        """
        key = adapter.layout_and_groups
        if key not in self._sources:
            source = torch.full((self.places.blocks,), -1)
            firsts = dict(zip(adapter.layout.paths, _firsts(adapter), strict=True))
            for target, group, piece in self._parts(adapter, path):
                offset, _ = self._range(piece, group)
                place = self.places.by_key[piece.module, offset, group]
                begin = place.first + (piece.offset - offset) // 2
                count, first = piece.width // 2, firsts[target] + piece.start // 2
                source[begin : begin + count] = torch.arange(first, first + count)
            same = torch.equal(source, torch.arange(sum(adapter.layout.blocks)))
            self._sources[key] = None if same else source
        return self._sources[key]

    def _parts(self, adapter: RoadAdapter, path: str) -> Iterable[tuple[str, int, Piece]]:
        """The targets of an adapter, their group sizes and their pieces in this process.

        Raises:
            RoadError: where the model has no such target, or a shard cuts a pair.
        """
        layout = adapter.layout
        for target, group, width in zip(layout.paths, adapter.groups, layout.widths, strict=True):
            for piece in self._pieces_of(target, f"{path}: adapter {adapter.name!r} turns"):
                if piece.whole != width:
                    raise RoadError(
                        f"{path}: {target} is {width} wide in it, and {piece.whole} in the engine: "
                        "expected its own base model"
                    )
                if piece.start % group or piece.width % group or piece.offset % 2:
                    raise RoadError(
                        f"{path}: {target} of adapter {adapter.name!r} is paired in groups of "
                        f"{group} dims, and a process has {piece.width} dims of it: expected fewer "
                        "processes (tensor_parallel_size), or adjacent pairs"
                    )
                yield target, group, piece

    def _pieces_of(self, target: str, turns: str) -> Sequence[Piece]:
        """Where the output of a target lies.

        Raises:
            RoadError: where the engine has no such target, or can't turn it.
        """
        try:
            name = self._name_of(target)
        except RoadError as error:
            raise RoadError(f"{turns} {error}") from None
        if name not in self._pieces:
            raise RoadError(
                f"{turns} {target}, which the engine does not run as a linear layer: expected "
                f"linear layers of the model's body{did_you_mean(name, self._pieces)}"
            )
        return self._pieces[name]


def _firsts(adapter: RoadAdapter) -> list[int]:
    """For each target the number of its first block in the adapter's rotations."""
    firsts, total = [], 0
    for blocks in adapter.layout.blocks:
        firsts.append(total)
        total += blocks
    return firsts
