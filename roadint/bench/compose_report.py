"""What the runs of `roadint bench compose` say: means over seeds, and equal divergence."""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

BASE, PROMPT, ROAD = "base", "prompt", "road"

Case = dict[str, Any]


def cases_of(runs: Sequence[Mapping[str, Any]]) -> list[Case]:
    """The means over seeds, for every method, composition and strength.

    Args:
        runs: {"method", "seed", "numbers", "measures"}, whose measures have a composition, a
            strength and shares.
    """
    found: dict[tuple[str, str, float], list[tuple[Mapping[str, Any], Mapping[str, Any]]]] = {}
    for run in runs:
        for measure in run["measures"]:
            place = run["method"], measure["composition"], measure["strength"]
            found.setdefault(place, []).append((run, measure))
    cases = []
    for (method, name, strength), pairs in found.items():
        measures = [measure for _, measure in pairs]
        successes = [measure["success"] for measure in measures]
        shares = [share for share in measures[0] if share not in ("composition", "strength")]
        cases.append(
            {
                "method": method,
                "composition": name,
                "strength": strength,
                "numbers": pairs[0][0]["numbers"],
                "seeds": len(pairs),
                **{share: _mean([each[share] for each in measures]) for share in shares},
                "sd": round(statistics.stdev(successes), 4) if len(pairs) > 1 else None,
            }
        )
    return cases


def at_equal_divergence(cases: Sequence[Case]) -> list[Case]:
    """The success of every method where it moves the model as far as RoAd does at strength 1.

    Args:
        cases: As `cases_of` returns them. Curves of methods begin with the base model's case.
    """
    curves: dict[tuple[str, str], list[Case]] = {}
    for case in sorted(cases, key=lambda case: float(case["strength"])):
        curves.setdefault((case["composition"], case["method"]), []).append(case)
    equal = []
    for (name, method), curve in curves.items():
        road = next((c for c in curves.get((name, ROAD), []) if c["strength"] == 1.0), None)
        if road is None or method == BASE:
            continue
        made = {"composition": name, "method": method, "numbers": curve[0]["numbers"]}
        if method == PROMPT:
            equal.append({**made, "success": curve[0]["success"], "kl": None, "reached": None})
            continue
        success, reached = at_divergence([*curves.get((name, BASE), []), *curve], road["kl"])
        equal.append({**made, "success": success, "kl": road["kl"], "reached": reached})
    return equal


def at_divergence(curve: Sequence[Mapping[str, Any]], kl: float) -> tuple[float, bool]:
    """The success of a method at a divergence, on the line between measured strengths.

    Args:
        curve: Measures by rising strength, with "kl" and "success".
        kl: The divergence.

    Returns:
        The success where the curve first is there, and True; that of the largest divergence, and
        False, where it stays below.

    Examples:
        >>> at_divergence([{"kl": 0.0, "success": 0.0}, {"kl": 0.2, "success": 0.5}], 0.1)
        (0.25, True)
    """
    for before, after in itertools.pairwise(curve):
        if before["kl"] <= kl <= after["kl"]:
            span = after["kl"] - before["kl"]
            share = (kl - before["kl"]) / span if span else 1.0
            value = before["success"] + share * (after["success"] - before["success"])
            return round(value, 4), True
    furthest = max(curve, key=lambda case: float(case["kl"]))
    return furthest["success"], bool(furthest["kl"] >= kl)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [float(value) for value in values if value is not None]  # "nan" in a report
    return round(statistics.mean(known), 4) if known else None
