"""The adapters of a model, and the rotations at linear layers that a call lowers them to."""

from collections.abc import (
    Hashable,
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    Sequence,
    ValuesView,
)
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Complex, Int
from torch import Tensor, nn

from roadint.adapters.adapter import RoadAdapter
from roadint.adapters.merging import Merged
from roadint.adapters.products import by_layout, check_products, product
from roadint.adapters.targets import Layout
from roadint.architecture.devices import on_device
from roadint.architecture.properties import device_of
from roadint.engines.call import Call
from roadint.engines.table import Table, Tables
from roadint.errors import RoadError, did_you_mean, listing, quoted
from roadint.grammar.composition import ALL, Composition, CompositionLike
from roadint.rotation.kernels.torch import carries_tangents
from roadint.rotation.rotation import Rotation, stacked

Terms = tuple[tuple[str, float], ...]
"""Names of adapters and their strengths."""


@dataclass(frozen=True)
class LoweredRotations:
    """The rotations of one call at the targets of adapters that share a layout.

    Args:
        layout: The targets.
        groups: The group size of the pairs at each target.
        rotation: The rotations of all targets, end to end: one a row of the call, one for all rows
            or, where there is an `index`, one for each different composition.
        index: The rotation that each row takes.
    """

    layout: Layout
    groups: tuple[int, ...]
    rotation: Rotation
    index: Int[Tensor, " rows"] | None

    def on(self, device: torch.device) -> "LoweredRotations":
        """The same on another device, to which all of them move at once, when one is first needed.

        Args:
            device: The device on which a target runs.
        """
        u, v = self.rotation.u, self.rotation.v
        if u.device == device:
            return self
        if device not in self._elsewhere:
            rotation = Rotation(u.to(device), None if v is None else v.to(device))
            index = None if self.index is None else self.index.to(device)
            self._elsewhere[device] = replace(self, rotation=rotation, index=index)
        return self._elsewhere[device]

    @cached_property
    def _elsewhere(self) -> dict[torch.device, "LoweredRotations"]:
        return {}

    @cached_property
    def parts(
        self,
    ) -> list[
        tuple[
            Complex[Tensor, "rotations blocks"],
            Complex[Tensor, "rotations blocks"] | None,
        ]
    ]:
        """For each target u and v; None for a v that is 0."""
        blocks = self.layout.blocks
        u, v = self.rotation.u, self.rotation.v
        of_v = [None] * len(blocks) if v is None else torch.split(v, blocks, dim=-1)
        return list(zip(torch.split(u, blocks, dim=-1), of_v, strict=True))

    def of_rows(self, rows: int) -> Rotation:
        """The rotations, one a row."""
        if self.index is not None:
            return self.rotation.row(self.index)
        u, v = self.rotation.u, self.rotation.v
        return Rotation(u.expand(rows, -1), None if v is None else v.expand(rows, -1))

    def number_of_rows(self, rows: int) -> Int[Tensor, " rows"]:
        """The number of the rotation that each row takes."""
        if self.index is not None:
            return self.index
        numbers = torch.arange(rows, device=self.rotation.u.device)
        return numbers if len(self.rotation.u) > 1 else torch.zeros_like(numbers)


@dataclass(frozen=True)
class LoweredAdapters:
    """What a call does at linear layers.

    Args:
        acting: The adapters that some row names.
        rotations: The rotations, one entry for each layout of these adapters.
        terms: For each row, adapters and their strengths.
        learning: For each row, the names that get its gradient; None for all.
    """

    acting: Sequence[RoadAdapter]
    rotations: Sequence[LoweredRotations]
    terms: Sequence[Terms]
    learning: Sequence[frozenset[str] | None]


class Adapters(nn.Module, Mapping[str, RoadAdapter]):
    """Adapters on the linear layers of a model, by name.

    It never changes: `plus` and `without` return a new one, so a running call is not disturbed.

    Args:
        adapters: In the order in which compositions list them.
        tables: The lowered rows of earlier calls.
        merged: What is merged into the model's weights. Meanwhile no adapter acts.
    """

    def __init__(
        self,
        adapters: Iterable[RoadAdapter] = (),
        tables: Tables | None = None,
        merged: Merged | None = None,
    ) -> None:
        super().__init__()
        for index, adapter in enumerate(adapters):
            self.add_module(str(index), adapter)
        self.tables = Tables() if tables is None else tables
        self.merged = merged

    def plus(
        self, model: nn.Module, adapters: Sequence[RoadAdapter], taken: Iterable[str] = ()
    ) -> "Adapters":
        """Add adapters, moved to the devices of the layers that they turn.

        Raises:
            RoadError: where a name is taken, by an adapter or as one of `taken`.
        """
        names = {*taken, *self}
        for adapter in adapters:
            if adapter.name in names:
                raise RoadError(
                    f"name {adapter.name!r} is taken: expected another one than {listing(names)}"
                )
            names.add(adapter.name)
        for adapter in adapters:
            device = device_of(model.get_submodule(adapter.layout.paths[0]))
            if device is not None:
                adapter.to(device)
        return Adapters([*self.values(), *adapters], self.tables, self.merged)

    def without(self, names: Iterable[str]) -> "Adapters":
        """Leave adapters out, and drop the lowered rows that they alone used."""
        dropped = set(names)
        rest = [adapter for name, adapter in self.items() if name not in dropped]
        self.tables.drop_others({adapter.layout_and_groups for adapter in rest})
        return Adapters(rest, self.tables, self.merged)

    def with_merged(self, merged: Merged | None) -> "Adapters":
        """The same adapters with `merged` in the model's weights, or nothing."""
        return Adapters(self.values(), self.tables, merged)

    def mergeable(self, compose: CompositionLike, names: Sequence[str]) -> Composition:
        """The composition that is to be merged.

        Args:
            compose: A composition of adapters; "all" is all of them.
            names: The names that compositions of the model may use.

        Raises:
            RoadError: where something is merged already, for edits of hidden states, for nothing,
                and for sums whose order would matter.
        """
        if self.merged:
            raise RoadError(
                f"adapters are merged already, as '{self.merged.composition}': unmerge() first"
            )
        is_all = isinstance(compose, str) and compose == ALL
        composition = Composition.parse(compose, list(self) if is_all else names)
        for name, _ in composition.terms:
            if name not in self:
                raise RoadError(
                    f"{quoted(name)} edits hidden states at some tokens, which no weights do: "
                    f"expected {listing(self)}"
                )
        if not composition.terms:
            raise RoadError(
                f"nothing to merge in {quoted(str(compose))}: expected a composition of adapters, "
                f"of {listing(self)}"
            )
        self.check([composition])
        return composition

    def named(self, name: object, what: str = "") -> RoadAdapter:
        """The adapter of a name.

        Raises:
            RoadError: where there is none.
        """
        if not isinstance(name, str) or name not in self:
            raise RoadError(
                f"no adapter {quoted(name)}{what}: expected one of {listing(self)}"
                f"{did_you_mean(name, self)}"
            )
        return self[name]

    @property
    def names(self) -> list[str]:
        """The names that a composition may use; none while adapters are merged."""
        return [] if self.merged else list(self)

    @property
    def labels(self) -> set[str]:
        """The labels of the checkpoints that adapters come from; "" for an adapter without one."""
        return {name.partition("@")[2] for name in self}

    @property
    def trainable_count(self) -> int:
        """How many numbers train."""
        return sum(adapter.trainable_count for adapter in self.values())

    def spec(self) -> list[dict[str, Any]]:
        """For each adapter, the arguments that make it again, as plain JSON values."""
        return [adapter.spec() for adapter in self.values()]

    def check(self, compositions: Sequence[Composition]) -> None:
        """Check that compositions use no adapters together whose order would matter.

        Raises:
            RoadError: where it would.
        """
        check_products(self._by_name, compositions)

    def lower(self, call: Call) -> LoweredAdapters | None:
        """What a call does at linear layers; None where no adapter acts.

        Raises:
            RoadError: where a batch has more different compositions than the tables have slots, and
                where values are not finite.
        """
        usable = {} if self.merged else self._by_name
        terms = [
            tuple(term for term in composition.terms if term[0] in usable)
            for composition in call.compositions
        ]
        names = dict.fromkeys(name for row in terms for name, _ in row)
        if not names:
            return None
        learning: list[frozenset[str] | None] = [None] * len(terms)
        if call.learning is not None:
            learning = [frozenset(name for name, _ in row.terms) for row in call.learning]
        acting = [usable[name] for name in names]
        rotations = [self._rotations(members, terms, learning) for members in by_layout(acting)]
        return LoweredAdapters(acting, rotations, terms, learning)

    def _rotations(
        self,
        members: Sequence[RoadAdapter],
        terms: Sequence[Terms],
        learning: Sequence[frozenset[str] | None],
    ) -> LoweredRotations:
        by_name = {adapter.name: adapter for adapter in members}
        members_terms = [tuple(term for term in row if term[0] in by_name) for row in terms]
        first = members[0]
        blocks = first.layout.blocks
        learns = any(
            adapter.theta.requires_grad or adapter.alpha.requires_grad for adapter in members
        )
        if (torch.is_grad_enabled() and learns) or carries_tangents():
            # A table would keep no graph.
            rotation, index = _with_gradients(by_name, members_terms, learning)
        else:
            table = self.tables.of(first.layout_and_groups, sum(blocks), first.theta.device)
            rotation, index = _from_table(by_name, members_terms, table)
        return LoweredRotations(first.layout, first.groups, rotation, index)

    @property
    def _by_name(self) -> dict[str, RoadAdapter]:
        """By the names that they have now: a caller may give an adapter another one."""
        return {adapter.name: adapter for adapter in self._modules.values()}  # type: ignore[misc, union-attr]

    def __getitem__(self, name: str) -> RoadAdapter:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def keys(self) -> KeysView[str]:
        """The names."""
        return self._by_name.keys()

    def values(self) -> ValuesView[RoadAdapter]:
        """The adapters."""
        return self._by_name.values()

    def items(self) -> ItemsView[str, RoadAdapter]:
        """Names and adapters."""
        return self._by_name.items()

    # By identity, as modules are: a mapping's equality would leave the module without a hash.
    __eq__ = object.__eq__
    __hash__ = object.__hash__


def _with_gradients(
    members: Mapping[str, RoadAdapter],
    terms: Sequence[Terms],
    learning: Sequence[frozenset[str] | None],
) -> tuple[Rotation, Int[Tensor, " rows"] | None]:
    keys = list(zip(terms, learning, strict=True))
    slot_of = {key: slot for slot, key in enumerate(dict.fromkeys(keys))}
    made = [product(members, row_terms, names) for row_terms, names in slot_of]
    rotation = stacked(made)
    if len(slot_of) == 1:
        return rotation, None
    return rotation, on_device([slot_of[key] for key in keys], rotation.u.device)


def _from_table(
    members: Mapping[str, RoadAdapter], terms: Sequence[Terms], table: Table
) -> tuple[Rotation, Int[Tensor, " rows"] | None]:
    """The rotations of a table, whose keys are terms with the adapters' values at this moment."""
    names = list({name for row in terms for name, _ in row})
    states = dict(zip(names, table.seen.states_of([members[name] for name in names]), strict=True))
    keys: list[Hashable] = [tuple((*term, states[term[0]]) for term in row) for row in terms]

    def make(key: Any) -> Rotation:
        return product(members, [(name, strength) for name, strength, _ in key])

    return table.rows(keys, make)
