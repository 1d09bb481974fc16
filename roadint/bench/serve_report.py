"""The report of `roadint bench serve`: cases, ratios, and the promises beside what is measured."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

from roadint.bench.bars import Bar
from roadint.bench.report import case, ratio
from roadint.bench.serve_inputs import RANK, ServeJob

SYSTEMS: Mapping[str, str] = {
    "bare": "bare engine",
    "hidden": "roadint, hidden states",
    "adapters": "roadint, adapters",
    "lora": f"vLLM LoRA r={RANK}",
}
"""Kind of engine → the name of its system; how many subspaces act may follow."""
THREAD_TIME = "thread time"
"""The name of the cases that tell what roadint takes of a forward pass."""

_STAGE = "serve"
_LORAS = 8  # adapters in the comparison that is promised
Report = Mapping[str, Any]


def name_of(cached: bool) -> str:
    """The name of the cases of engines with a prefix cache, or without."""
    return f"prefix cache {'on' if cached else 'off'}"


def system_of(kind: str, subspaces: int) -> str:
    """The name of a system.

    Examples:
        >>> system_of("hidden", 3), system_of("bare", 0)
        ('roadint, hidden states, 3 subspaces', 'bare engine')
    """
    ending = f", {subspaces} subspace{'s' if subspaces > 1 else ''}" if subspaces else ""
    return SYSTEMS[kind] + ending


def served_case(
    name: str,
    system: str,
    count: int,
    runs: Sequence[Mapping[str, Any]],
    peak: float | None,
    job: ServeJob,
) -> dict[str, Any]:
    """The case of a batch that was served several times.

    Args:
        name: The name of the case.
        system: The name of the system.
        count: How many different compositions, or LoRAs, its requests had.
        runs: As `ServedEngine.run` returns them.
        peak: The peak of the engine's memory in MB.
        job: What was served.
    """
    seconds = [run["seconds"] for run in runs]
    tokens = job.requests * job.new_tokens
    more = {
        key + "_s": round(median(run[key] for run in runs), 5)
        for key in ("ttft", "ttft_most", "tpot")
    }
    return case(
        name,
        system,
        seconds,
        peak,
        compositions=count,
        tokens_per_s=round(tokens / median(seconds), 1),
        **more,
        cached_share=round(runs[-1]["cached"], 3),
        preemptions=sum(run["preemptions"] for run in runs),
        each_s=[round(value, 5) for value in seconds],
    )


def thread_case(
    system: str, count: int, runs: Sequence[Mapping[str, tuple[float, int]]], requests: int
) -> dict[str, Any]:
    """The case of a batch whose thread time was measured.

    Args:
        system: The name of the system.
        count: How many different compositions its requests had.
        runs: As `ServedEngine.measure` returns them; at least one step each.
        requests: How many requests it had.

    Returns:
        The case, whose seconds are roadint's in the worker; "share" is that over all else that the
        worker did, "front_us" and "core_us" what reading a request and keying its blocks took.
    """
    inside = [run["worker"][0] for run in runs]
    forward = [run["forward"][0] for run in runs]
    shares = [own / (all_ - own) for own, all_ in zip(inside, forward, strict=True)]
    beside = {
        f"{group}_us": round(1e6 * median(run[group][0] for run in runs) / requests, 1)
        for group in ("front", "core")
    }
    return case(
        THREAD_TIME,
        system,
        inside,
        None,
        compositions=count,
        share=round(median(shares), 5),
        forward_s=round(median(forward), 5),
        steps=runs[-1]["forward"][1],
        **beside,
        each_s=[round(value, 5) for value in forward],
    )


def served_ratios(cases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How many times faster roadint is than other systems, and with many compositions than with 1.

    Args:
        cases: Cases of a report. Ratios are medians of those within turns.
    """
    ratios = []
    for ours in cases:
        if "error" in ours or not ours["system"].startswith("roadint"):
            continue
        if ours["name"] == THREAD_TIME:
            continue
        count = ours["compositions"]
        others = [(SYSTEMS["bare"], 0), (SYSTEMS["lora"], count), (ours["system"], 1)]
        for system, compositions in others:
            found = find(cases, name=ours["name"], system=system, compositions=compositions)
            if found is None or found is ours:
                continue
            over = f"{compositions} composition" if system == ours["system"] else system
            value = ratio(ours["name"], over, _times(found, ours), 1.0)
            ratios.append({**value, "system": ours["system"], "compositions": count})
    return ratios


def find(cases: Sequence[Mapping[str, Any]], **wanted: Any) -> Mapping[str, Any] | None:
    """The case with these entries that was measured; None where there is none."""
    for entry in cases:
        if "median_s" in entry and all(entry.get(key) == value for key, value in wanted.items()):
            return entry
    return None


def _times(case: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """How many times longer one takes than the other, in the same turn."""
    pairs = zip(case["each_s"], other["each_s"], strict=False)
    return float(median(own / of_other for own, of_other in pairs))


def served_bars(counts: Sequence[int]) -> list[Bar]:
    """What is promised of serving on a CPU.

    Args:
        counts: How many different compositions there were.
    """
    most = max(counts)
    bars = []
    for kind, limit in (("hidden", 0.01), ("adapters", 0.10)):
        for subspaces in (1, 3):
            system = system_of(kind, subspaces)
            about = f"{system.removeprefix('roadint, ')}"
            bars += [
                _bar(
                    f"{about}: thread time inside roadint, of the rest of a forward pass",
                    partial(_share, system=system, count=most),
                    limit,
                ),
                *(
                    _bar(
                        f"{about}: {what} with {most} compositions over that with 1",
                        partial(over_one, system=system, most=most),
                        1.03,
                    )
                    for what, over_one in (("thread time", _thread_over_one), ("time", _over_one))
                    if most > 1
                ),
            ]
    ours = system_of("adapters", 1)
    name = f"{_LORAS} adapters: tokens a second over vLLM's LoRA r={RANK}"
    return [*bars, _bar(name, partial(_over_lora, ours=ours), 2.0, at_most=False)]


def _bar(
    name: str, value: Callable[[Report], float | None], limit: float, at_most: bool = True
) -> Bar:
    return Bar(name, _STAGE, value, limit, at_most)


def verdicts(report: Report, counts: Sequence[int]) -> list[dict[str, Any]]:
    """What a report says of the promises."""
    return [bar.verdict({_STAGE: report}) for bar in served_bars(counts)]


def _share(report: Report, system: str, count: int) -> float | None:
    found = find(report["cases"], name=THREAD_TIME, system=system, compositions=count)
    return None if found is None else float(found["share"])


def _thread_over_one(report: Report, system: str, most: int) -> float | None:
    """By the shares inside roadint: the rest of a forward pass is the same for both."""
    many, one = (_share(report, system, count) for count in (most, 1))
    return None if many is None or one is None else (1 + many) / (1 + one)


def _over_one(report: Report, system: str, most: int) -> float | None:
    wanted = {"name": name_of(False), "system": system}
    many = find(report["cases"], compositions=most, **wanted)
    one = find(report["cases"], compositions=1, **wanted)
    return None if many is None or one is None else _times(many, one)


def _over_lora(report: Report, ours: str) -> float | None:
    wanted = {"name": name_of(False), "compositions": _LORAS}
    own = find(report["cases"], system=ours, **wanted)
    lora = find(report["cases"], system=SYSTEMS["lora"], **wanted)
    return None if own is None or lora is None else _times(lora, own)
