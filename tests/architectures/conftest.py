"""What the sweep saw, of all processes that it ran in, as a table for readers: build/architectures.md."""

from collections import Counter
from pathlib import Path
from typing import Any

import transformers

from tests.architectures.tiny import UNBUILT

TABLE = Path("build/architectures.md")
COLUMNS = ("type", "class", "component", "verdict", "where or why")
Line = tuple[str, ...]  # of these


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = [report for group in terminalreporter.stats.values() for report in group]
    calls = [report for report in reports if getattr(report, "when", None) == "call"]
    seen = [dict(report.user_properties) for report in calls]
    lines = sorted(
        (*properties["case"], component, verdict, " ".join(text.split()))
        for properties in seen
        if "outcomes" in properties
        for component, verdict, text in properties["outcomes"]
    )
    if lines:
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text(_table(lines), encoding="utf-8")
        terminalreporter.write_line(f"{_summary(lines)}\n{TABLE} has the table")


def _summary(lines: list[Line]) -> str:
    counts = Counter((component.split()[0], verdict) for _, _, component, verdict, _ in lines)
    classes = {line[:2] for line in lines}
    of_classes = f"{len(classes)} model classes of transformers {transformers.__version__}"
    parts = [f"{of_classes}, {len(UNBUILT)} not built"]
    for component in sorted({component for component, _ in counts}):
        verdicts = ("right", "refused", "FAULT")
        told = ", ".join(f"{counts[component, verdict]} {verdict}" for verdict in verdicts)
        parts.append(f"{component}: {told}")
    return "\n".join(parts)


def _table(lines: list[Line]) -> str:
    text = ["# Decoder types", "", *(f"- {line}" for line in _summary(lines).splitlines()), ""]
    text += [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    text += ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    text += ["", "Not built:", "", *(f"- {name}: {why}" for name, why in UNBUILT.items())]
    return "\n".join(text) + "\n"
