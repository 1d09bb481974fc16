"""The bars of `roadint bench gpu`: what roadint promises of speed on a GPU."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

Report = Mapping[str, Any]
"""What a benchmark returns."""


@dataclass(frozen=True)
class Bar:
    """A promise of speed.

    Attributes:
        name: What is measured, over what.
        stage: The stage whose report has it.
        value: Reads the measured number from the report; None where it has none.
        limit: The number to reach.
        at_most: Whether smaller is better.
    """

    name: str
    stage: str
    value: Callable[[Report], float | None]
    limit: float
    at_most: bool = True

    def verdict(self, reports: Mapping[str, Report]) -> dict[str, Any]:
        """What the reports say of it.

        Args:
            reports: By stage.

        Returns:
            {"name", "value", "limit", "at_most", "reached"}; value and reached are None where
            nothing was measured.
        """
        value = self.value(reports[self.stage]) if self.stage in reports else None
        reached = None
        if value is not None:
            reached = value <= self.limit if self.at_most else value >= self.limit
            value = round(value, 4)
        entry = {"name": self.name, "value": value, "limit": self.limit}
        return {**entry, "at_most": self.at_most, "reached": reached}


def bars_of(widths: Sequence[int], compositions: int) -> list[Bar]:
    """What is promised of the stages of `roadint.bench.gpu`.

    Args:
        widths: The widths of interchanges.
        compositions: How many compositions of hidden states a generation has.
    """
    bars = []
    for rows in (8, 64):
        what, ours = f"decode, {rows} rows, {rows} adapters", f"roadint, {rows} adapters"
        bmm = f"bmm LoRA r=8, {rows} adapters"
        made = partial(_over, name="decode", ours=ours, rows=rows)
        bars += [
            Bar(
                f"{what}, compiled, over the bare model",
                f"compiled-{rows}",
                made(mode="generate"),
                1.08,
            ),
            Bar(
                f"{what}, compiled, over bmm LoRA's graph",
                f"compiled-{rows}",
                _over_bmm(rows),
                0.75,
            ),
            Bar(f"{what}, graph by hand, over bare", "decode", made(mode="graph"), 1.08),
            Bar(f"{what}, graph, over bmm LoRA", "decode", made(mode="graph", other=bmm), 0.75),
        ]
    return [
        *bars,
        Bar("decode, 8 rows, 8 adapters, eager, over bare", "decode", _eager, 1.15),
        Bar("prefill, over bare", "decode", _over("prefill", "roadint"), 1.08),
        Bar("training step, pyvene's over ours", "train", _step_over_pyvene, 4.0, at_most=False),
        Bar("training step, seconds", "train", _step_seconds, 0.033),
        Bar("adapters on all layers: time over LoRA's", "adapters", _adapters_time, 1.0),
        Bar("adapters on all layers: memory over LoRA's", "adapters", _adapters_memory, 1.0),
        Bar("merge, PEFT's over ours", "merge", _merge("merge"), 10.0, at_most=False),
        Bar("unmerge, PEFT's over ours", "merge", _merge("unmerge"), 10.0, at_most=False),
        *(
            Bar(
                f"interchange, width {width}, full DAS over ours",
                f"align-{width}",
                _full_over_rotations,
                20.0,
                at_most=False,
            )
            for width in widths
        ),
        Bar(
            f"{compositions} compositions of hidden states, over bare",
            "generate",
            _compositions,
            1.02,
        ),
    ]


def _find(report: Report, **wanted: Any) -> Mapping[str, Any] | None:
    """The case that has these entries, and was measured."""
    for case in report["cases"]:
        if "median_s" in case and all(case.get(key) == value for key, value in wanted.items()):
            found: Mapping[str, Any] = case
            return found
    return None


def _over(
    name: str, ours: str, other: str | None = None, **wanted: Any
) -> Callable[[Report], float | None]:
    """The time of a case over another system's; over the base's within turns by default."""

    def value(report: Report) -> float | None:
        case = _find(report, name=name, system=ours, **wanted)
        if case is None or other is None:
            return None if case is None else case.get("over_base")
        rival = _find(report, name=name, system=other, **wanted)
        return None if rival is None else case["median_s"] / rival["median_s"]

    return value


def _over_bmm(rows: int) -> Callable[[Report], float | None]:
    """A step of `generate`, with all that a step of it does, over a bare replay of the bmm LoRA."""

    def value(report: Report) -> float | None:
        ours = _find(report, system=f"roadint, {rows} adapters", mode="generate")
        bmm = _find(report, system=f"bmm LoRA r=8, {rows} adapters", mode="graph")
        return None if ours is None or bmm is None else ours["median_s"] / bmm["median_s"]

    return value


_eager = _over("decode", "roadint, 8 adapters", rows=8, mode="eager")
_adapters_time = _over("training", "roadint RoAd1", "PEFT LoRA r=8")


def _adapters_memory(report: Report) -> float | None:
    ours = _find(report, system="roadint RoAd1")
    lora = _find(report, system="PEFT LoRA r=8")
    return None if ours is None or lora is None else ours["beside_mb"] / max(lora["beside_mb"], 1)


def _step_over_pyvene(report: Report) -> float | None:
    return _ratio(report, "step", "pyvene")


def _step_seconds(report: Report) -> float | None:
    case = _find(report, name="step", system="roadint")
    return None if case is None else float(case["median_s"])


def _merge(name: str) -> Callable[[Report], float | None]:
    return lambda report: _ratio(report, name, "PEFT RoAd", system="roadint")


def _full_over_rotations(report: Report) -> float | None:
    """Full DAS over the most rotations: twice as many as the width has factors of two."""
    full, ours = _find(report, system="pyvene RotatedSpace"), report["cases"][2]
    return None if full is None else full["median_s"] / ours["median_s"]


def _compositions(report: Report) -> float | None:
    case = _find(report, system="roadint")
    return None if case is None else float(case["over_base"])


def _ratio(report: Report, name: str, over: str, **wanted: Any) -> float | None:
    for entry in report["ratios"]:
        alike = all(entry.get(key) == value for key, value in wanted.items())
        if entry["name"] == name and entry["over"] == over and alike:
            return float(entry["value"])
    return None
