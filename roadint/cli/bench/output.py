"""The table of a report that times systems beside each other, as train and generate do."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from roadint.cli.output import console, print_json, print_line, report_json, save_figure

_AXES = ("prompt", "completion", "rows", "compositions")  # what a case may vary


def show_report(
    report: Mapping[str, Any], out: Path | None, plot: Path | None, as_json: bool
) -> None:
    """Give a report of times to whoever asked: files, JSON on stdout, or a table.

    Args:
        report: As `bench_train` and `bench_generate` return it.
        out: The file of the report.
        plot: The file of its picture.
        as_json: Whether stdout gets JSON in place of the table.
    """
    keep_report(report, out, plot, as_json, "bench_figure", show=_show)


def _show(report: Mapping[str, Any]) -> None:
    print_line(machine_line(report["machine"]))
    table = Table(
        "case",
        "system",
        "median",
        "min to max",
        "runs",
        "peak memory",
        "of the matrix-multiply rate",
        "roadint is",
    )
    ratios = {(ratio["name"], ratio["over"]): ratio["value"] for ratio in report["ratios"]}
    for case in report["cases"]:
        table.add_row(*_cells(case, ratios.get((case["name"], case["system"]))))
    console.print(table)


def keep_report(
    report: Mapping[str, Any],
    out: Path | None,
    plot: Path | None,
    as_json: bool,
    figure: str,
    *others: Mapping[str, Any],
    show: Callable[[Mapping[str, Any]], None],
) -> None:
    """Write a report and its picture, where they are asked for, and show it.

    Stdout comes last, which may be closed, and comes also where the picture can't be drawn.

    Args:
        report: The report.
        out: The file of the report.
        plot: The file of its picture.
        as_json: Whether stdout gets the report, as JSON.
        figure: What draws it: a name in roadint.plots, whose import takes a second.
        others: Reports that are drawn beside it.
        show: Prints the report's table, without JSON.
    """
    report_json(report, out, printed=False)
    try:
        if plot is not None:
            from roadint import plots

            save_figure(getattr(plots, figure)(report, *others), plot)
    finally:
        print_json(report) if as_json else show(report)


def machine_line(machine: Mapping[str, Any]) -> str:
    """What a report says of its machine, in a line."""
    return (
        f"{machine['processor']}, {machine['threads']} threads, {machine['dtype']}, matrix "
        f"products {machine['matmul_gflops']:,.0f} GFLOP/s, torch {machine['torch']}, transformers "
        f"{machine['transformers']}"
    )


def bars_table(bars: Sequence[Mapping[str, Any]]) -> Table:
    """What is promised, beside what was measured.

    Args:
        bars: As `roadint.bench.bars.Bar.verdict` returns them.
    """
    table = Table("promise", "measured", "bar", "reached")
    for bar in bars:
        table.add_row(
            bar["name"],
            "not measured" if bar["value"] is None else f"{bar['value']:.3g}",
            f"{'≤' if bar['at_most'] else '≥'} {bar['limit']:g}",
            {True: "yes", False: "no", None: ""}[bar["reached"]],
        )
    return table


def duration(seconds: float) -> str:
    """Write a time with three digits, in seconds or in milliseconds.

    Args:
        seconds: The time.

    Examples:
        >>> duration(12.04), duration(0.00751)
        ('12.0 s', '7.51 ms')
    """
    return f"{_short(seconds)} s" if seconds >= 1 else f"{_short(1000 * seconds)} ms"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def _cells(case: Mapping[str, Any], faster: float | None) -> tuple[str, ...]:
    varied = next((f" = {case[axis]}" for axis in _AXES if axis in case), "")
    rate, peak = case.get("matmul_fraction"), case["peak_mb"]
    return (
        case["name"] + varied,
        case["system"],
        duration(case["median_s"]),
        f"{duration(case['min_s'])} to {duration(case['max_s'])}",
        str(case["runs"]),
        "" if peak is None else f"{peak:,.0f} MB",
        "" if rate is None else f"{rate:.0%}",
        "" if faster is None else f"{faster:.2f} × as fast",
    )
