"""Companions: compositions that act beside one that learns, so that it learns to work with them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from roadint.adapters.products import check_products
from roadint.errors import RoadError, listing, quoted
from roadint.grammar.composition import Composition
from roadint.interventions.sums import check_sums
from roadint.model.road_model import RoadModel


class Companions:
    """The sums of compositions with their companions.

    A share of a composition's examples runs with one of the sums, drawn at random, in which the
    companion does not learn.
    """

    def __init__(self, sums: Mapping[str, Sequence[Composition]], rate: float) -> None:
        self._sums, self._rate = sums, rate

    @classmethod
    def parse(
        cls, road: RoadModel, companions: Mapping[str, str | Sequence[str]], rate: float
    ) -> "Companions":
        """Read companions.

        Args:
            road: The model.
            companions: Composition → its companion, or a list of companions.
            rate: The share of a composition's examples that run with a companion, from 0 to 1.

        Returns:
            The companions.

        Raises:
            RoadError: where they do not fit the model, or cancel what is to learn.
        """
        if not 0 <= rate <= 1:
            raise RoadError(
                f"companion_rate={quoted(rate)}: expected the share of the examples, from 0 to 1"
            )
        sums = {}
        for name, listed in companions.items():
            learning = Composition.parse(name, road.names)
            texts = [listed] if isinstance(listed, str) else listed
            beside = [Composition.parse(text, road.names) for text in texts]
            sums[name] = [_sum(road, learning, companion) for companion in beside]
            check_sums(list(road.interventions), sums[name])
            check_products(road.adapters, sums[name])
        return cls(sums, rate)

    def draw(self, compositions: Sequence[str]) -> dict[str, Sequence[Any]]:
        """Draw companions for a batch, from torch's generator, which a resumed run restores.

        Args:
            compositions: One a row.

        Returns:
            "compose" and "learning" for `RoadModel.forward`; nothing where there are no companions.
        """
        if not self._sums:
            return {}
        acting: list[Any] = []
        for name, drawn in zip(compositions, torch.rand(len(compositions)).tolist(), strict=True):
            sums = self._sums.get(str(name), ())
            # One random number decides whether a companion acts, and which one.
            index = int(drawn / self._rate * len(sums)) if self._rate else len(sums)
            acting.append(sums[index] if index < len(sums) else name)
        return {"compose": acting, "learning": compositions}


def _sum(road: RoadModel, learning: Composition, companion: Composition) -> Composition:
    strengths: dict[str, float] = defaultdict(float)
    for name, strength in [*learning.terms, *companion.terms]:
        strengths[name] += strength
    acting = Composition.parse(strengths, road.names)
    lost = {name for name, _ in learning.terms} - {name for name, _ in acting.terms}
    if lost:
        raise RoadError(
            f"companion '{companion}' takes {listing(sorted(lost))} out of '{learning}', which is "
            "to learn beside it: expected one of other subspaces"
        )
    return acting
