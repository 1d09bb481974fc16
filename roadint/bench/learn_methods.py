"""The names of what `roadint bench learn` compares, their ranks and their learning rates."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from roadint.errors import RoadError, check_known, quoted

# Family → its learning rate. RoAd's is of the paper's range (C.1), LoRA's the usual one, and what
# has both is between them; rotations by other means have RoAd's.
RATES = {
    "road_1": 5e-3,
    "road_2": 5e-3,
    "road_4": 5e-3,
    "road_1+lora": 1.5e-3,
    "lora": 5e-4,
    "dora": 5e-4,
    "ia3": 1e-2,
    "oft": 5e-3,
    "boft": 5e-3,
    "bitfit": 1e-3,
    "loreft": 1e-3,
    "full": 5e-5,
    "head": 5e-3,
}
# Family → the rank where none is said. LoReFT's has as many numbers as RoAd1, or less.
RANKS = {"road_1+lora": 4, "lora": 8, "dora": 8, "loreft": 4}
# BOFT takes ten times as long as LoRA, few models of today have biases, a head alone is a bound.
DEFAULTS = tuple(name for name in RATES if name not in ("boft", "bitfit", "head"))
FACTOR = 3.0  # between two learning rates that are tried


@dataclass(frozen=True)
class Method:
    """A method of learning.

    Attributes:
        name: As it was asked for: "road_1", "lora_2", "road_1+lora_4".
        family: The name without a rank, in RATES.
        rank: The rank; None where the family has none.
    """

    name: str
    family: str
    rank: int | None = None

    @classmethod
    def named(cls, name: str) -> "Method":
        """The method of a name.

        Raises:
            RoadError: for an unknown name, and a rank where there is none.

        Examples:
            >>> Method.named("road_1+lora_4")
            Method(name='road_1+lora_4', family='road_1+lora', rank=4)
        """
        ranked = re.fullmatch(r"(.+)_([1-9][0-9]{0,3})", name) if isinstance(name, str) else None
        if ranked and ranked[1] in RANKS:
            return cls(name, ranked[1], int(ranked[2]))
        if name not in RATES:
            check_known("method", name, [*RATES, *(f"{family}_2" for family in RANKS)])
            raise AssertionError(name)
        return cls(name, name, RANKS.get(name))


def methods_named(names: Sequence[str]) -> list[Method]:
    """The methods of names; DEFAULTS where there are none.

    Raises:
        RoadError: as `Method.named`, and where two names mean the same.
    """
    methods: dict[tuple[str, int | None], Method] = {}
    for method in map(Method.named, dict.fromkeys(names or DEFAULTS)):
        other = methods.setdefault((method.family, method.rank), method)
        if other is not method:
            raise RoadError(
                f"methods {quoted(other.name)} and {quoted(method.name)} are the same: expected "
                "one of them"
            )
    return list(methods.values())


def rates_of(method: Method, tries: int, fixed: Mapping[str, float]) -> list[float]:
    """The learning rates that a method tries, in order.

    They lie around the family's own, by a factor of 3 from one to the next: r/3, r and 3r where
    three are tried, r/√3 and √3·r where two are.

    Args:
        method: The method.
        tries: How many are tried.
        fixed: Name of a method → its only rate.

    Examples:
        >>> rates_of(Method.named("lora"), 3, {})
        [0.000167, 0.0005, 0.0015]
    """
    if method.name in fixed:
        return [fixed[method.name]]
    middle = RATES[method.family]
    powers = [index - (tries - 1) / 2 for index in range(tries)]
    return [float(f"{middle * FACTOR**power:.3g}") for power in powers]


def nearness(method: Method, rate: float) -> float:
    """How near a rate is to the family's own, for ties: the larger the nearer."""
    return -abs(math.log(rate / RATES[method.family]))
