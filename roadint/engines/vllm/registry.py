"""The checkpoints that an engine serves, by label, and what requests ask of them."""

import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Any

import torch

from roadint.adapters.products import check_products
from roadint.engines.vllm.rows.plan import Plan, Terms, check_values
from roadint.engines.vllm.served import Base, Served, open_served
from roadint.engines.vllm.settings import Settings, check_served_label
from roadint.errors import RoadError, listing, quoted
from roadint.grammar.composition import Composition
from roadint.grammar.subspace import labelled
from roadint.interventions.base import SubspaceIntervention
from roadint.interventions.sums import check_sums

Resolved = dict[str, Any]
"""A request's composition as it travels between processes: plain values that name checkpoints by
their fingerprints, {"of": [[fingerprint, [[name, strength], …]], …]}."""

_PLANS = 4096  # that are held ready
_GRACE = 60.0  # seconds in which a request may still be on its way when its checkpoint is unloaded


class Registry:
    """The checkpoints of one engine, in one process. Safe to use from many threads.

    Args:
        base: The base model.
    """

    def __init__(self, base: Base) -> None:
        self.base = base
        self._served: dict[str, Served] = {}
        self._labelled: dict[str, list[SubspaceIntervention]] = {}
        self._unloaded: dict[str, tuple[Served, float]] = {}
        self._plans: OrderedDict[Any, Plan] = OrderedDict()
        self._resolved: dict[str | Composition, Resolved | None] = {}
        self._lock = threading.RLock()

    @classmethod
    def of(cls, settings: Settings, base: Base) -> "Registry":
        """Load the checkpoints of a configuration.

        Raises:
            RoadError: where one can't be served, or a layer is not there.
        """
        for layer in settings.layers:
            if layer >= base.layers:
                raise RoadError(
                    f"layers={list(settings.layers)}: the engine's model has {base.layers} layers, "
                    f"expected indices from 0 to {base.layers - 1}"
                )
        registry = cls(base)
        for label, path in settings.checkpoints.items():
            registry.load(label, open_served(path, base))
        return registry

    @property
    def served(self) -> Mapping[str, Served]:
        """The checkpoints, by label."""
        return dict(self._served)

    @property
    def names(self) -> list[str]:
        """The names that a composition may use."""
        return [
            labelled(name, label) for label, served in self._served.items() for name in served.names
        ]

    def check_load(self, label: str, served: Served) -> None:
        """Refuse a label or names that are taken.

        Raises:
            RoadError: where one is.
        """
        check_served_label(label)
        if label in self._served:
            raise RoadError(
                f"label {quoted(label)} is taken by {self._served[label].path}: expected another "
                "one, or unload it first"
            )
        taken = set(self.names) & {labelled(name, label) for name in served.names}
        if taken:
            raise RoadError(f"names {listing(sorted(taken))} are taken: expected a label")

    def load(self, label: str, served: Served) -> None:
        """Serve a checkpoint under a label.

        Raises:
            RoadError: where the label or a name is taken.
        """
        labelled = served.content.interventions(label or None)
        with self._lock:
            self.check_load(label, served)
            self._served[label] = served
            self._labelled[label] = labelled
            self._unloaded.pop(served.fingerprint, None)
            self._resolved.clear()

    def unload(self, label: str) -> None:
        """Serve a checkpoint no longer. Requests that run keep it.

        Raises:
            RoadError: where no checkpoint has the label.
        """
        with self._lock:
            if label not in self._served:
                raise RoadError(
                    f"no checkpoint {quoted(label)} is served: expected one of "
                    f"{listing(self._served)}"
                )
            served = self._served.pop(label)
            del self._labelled[label]
            self._unloaded[served.fingerprint] = served, time.monotonic()
            self._resolved.clear()

    def forget(self, in_use: Collection[str]) -> None:
        """Drop what was unloaded a while ago and no request needs.

        Args:
            in_use: The fingerprints of the checkpoints that unfinished requests need.
        """
        latest = time.monotonic() - _GRACE
        with self._lock:
            gone = {
                fingerprint
                for fingerprint, (_, since) in self._unloaded.items()
                if since < latest and fingerprint not in in_use
            }
            for fingerprint in gone:
                del self._unloaded[fingerprint]
            for key in [key for key, plan in self._plans.items() if plan.fingerprints & gone]:
                del self._plans[key]

    def resolve(self, asked: Any, prompt_length: int | None = None) -> Resolved | None:
        """Read what a request asks for.

        Args:
            asked: A composition, or {"compose": a composition}.
            prompt_length: The length of the request's prompt, in tokens; None where it is not
                known yet.

        Returns:
            The composition as it travels; None for the base model.

        Raises:
            RoadError: for unknown names, malformed text, sums whose order would matter, strengths
                at which a value is not defined, and positions outside the prompt.
        """
        text = _compose(asked)
        with self._lock:
            key = text if isinstance(text, str) else Composition.parse(text, self.names)
            if key not in self._resolved:
                resolved = self._resolve(Composition.parse(key, self.names))
                if len(self._resolved) >= _PLANS:
                    self._resolved.clear()
                self._resolved[key] = resolved
            resolved = self._resolved[key]
            plan = None if resolved is None else self.plan(resolved)
        if plan is not None and prompt_length is not None:
            _check_positions(plan, prompt_length)
        return resolved

    def _resolve(self, composition: Composition) -> Resolved | None:
        acting = {name for name, _ in composition.terms}
        parts = [part for parts in self._labelled.values() for part in parts]
        check_sums([part for part in parts if not acting.isdisjoint(part.partition)], [composition])
        by_name = {
            labelled(adapter.name, label): adapter
            for label, served in self._served.items()
            for adapter in served.adapters
        }
        check_products(by_name, [composition])
        summed: dict[str, dict[str, float]] = {}  # a checkpoint may have several labels
        for label, served in self._served.items():
            for name, strength in _terms_of(composition, label, served):
                own = summed.setdefault(served.fingerprint, {})
                own[name] = own.get(name, 0.0) + strength
        of = [
            [fingerprint, terms]
            for fingerprint, sums in summed.items()
            if (terms := [[name, strength] for name, strength in sums.items() if strength])
        ]
        if not of:
            return None
        resolved = {"of": of}
        check_values(self.plan(resolved), composition)
        return resolved

    def plan(self, resolved: Any) -> Plan:
        """What a resolved composition does.

        Raises:
            RoadError: where a checkpoint is not here.
        """
        key = tuple((fingerprint, _frozen(terms)) for fingerprint, terms in resolved["of"])
        with self._lock:
            if key not in self._plans:
                self._plans[key] = self._make_plan(key)
                while len(self._plans) > _PLANS:
                    self._plans.popitem(last=False)
            self._plans.move_to_end(key)
            return self._plans[key]

    def _make_plan(self, key: tuple[tuple[str, Terms], ...]) -> Plan:
        hidden: list[tuple[Served, Terms]] = []
        adapters: list[tuple[Served, Terms]] = []
        for fingerprint, terms in key:
            served = self._of(fingerprint)
            for names, found in ((served.subspaces, hidden), (served.adapters_by_name, adapters)):
                acting = tuple(term for term in terms if term[0] in names)
                found += [(served, acting)] if acting else []
        return Plan(tuple(hidden), tuple(adapters))

    def _of(self, fingerprint: str) -> Served:
        for served in self._served.values():
            if served.fingerprint == fingerprint:
                return served
        if fingerprint in self._unloaded:
            return self._unloaded[fingerprint][0]
        raise RoadError(
            f"the checkpoint {fingerprint[:12]} of a request was unloaded: load it and ask again"
        )


def _compose(asked: Any) -> Any:
    if not isinstance(asked, Mapping) or "compose" not in asked:
        return asked
    if len(asked) > 1:
        others = [name for name in asked if name != "compose"]
        raise RoadError(f"{quoted(others[0])} beside 'compose': expected 'compose' alone")
    return asked["compose"]


def _terms_of(composition: Composition, label: str, served: Served) -> list[tuple[str, float]]:
    """The terms of the checkpoint of a label, by its own names, which may have labels too."""
    own = {labelled(name, label): name for name in served.names}
    return [(own[name], strength) for name, strength in composition.terms if name in own]


def _frozen(terms: Any) -> Terms:
    return tuple((str(name), float(strength)) for name, strength in terms)


def _check_positions(plan: Plan, prompt_length: int) -> None:
    lengths = torch.tensor([prompt_length])
    for edit in {edit.position: edit for edit in reversed(plan.edits)}.values():
        try:
            edit.position.check(lengths)
        except RoadError as error:
            raise RoadError(f"layer {edit.intervention.layer}: {error}") from None
