"""Figures of an evaluation: gains, answers, interference."""

from matplotlib.axes import Axes

from roadint.evaluation.report import Measures, Report
from roadint.plots.heat import draw_heat, heat_figure
from roadint.plots.style import COLOURS, Figure


def composition_figure(report: Report) -> Figure:
    """What compositions gain over the base model, and what their answers are like.

    On the left are nats a token on every data set, on the right shares of the answers with their
    ranges: the 95 % bootstrap interval of one checkpoint, or the sample standard deviation over
    many.

    Args:
        report: What `roadint.evaluate` or `roadint.evaluation.report.over_seeds` returns.
    """
    sets, names = report.data_sets, report.compositions
    figure = Figure(figsize=(5.5 + 1.1 * len(sets), 1.6 + 0.55 * len(names)), layout="constrained")
    gains, shares = figure.subplots(1, 2, width_ratios=[len(sets) + 1, 6])
    _draw_gains(gains, report)
    figure.colorbar(gains.images[0], ax=gains, label="nats a token")
    _draw_shares(shares, report)
    return figure


def _draw_gains(panel: Axes, report: Report) -> None:
    """Gains over none, or over the first composition where none was not measured."""
    names, sets = report.compositions, report.data_sets
    base_name, title = ("none", "the base model") if "none" in names else (names[0], names[0])
    base = report.nll[base_name]
    grid = [[base[data_set] - report.nll[name][data_set] for data_set in sets] for name in names]
    largest = max(max(abs(value) for row in grid for value in row), 1e-3)
    draw_heat(
        panel,
        grid,
        names,
        sets,
        dark=lambda value: abs(value) > 0.6 * largest,
        form="+.2f",
        cmap="RdBu",
        vmin=-largest,
        vmax=largest,
    )
    panel.set_title(f"nats better than {title}", fontsize=9)


def _draw_shares(panel: Axes, report: Report) -> None:
    """A group of bars for every composition, with a bar for every share."""
    names = report.compositions
    known = [
        share
        for share in ("success", "on_topic", "degenerate")
        if report.shares[names[0]][share] is not None
    ]
    height = 0.8 / len(known)
    for index, (share, colour) in enumerate(zip(known, COLOURS, strict=False)):
        values = [report.shares[name][share] or 0.0 for name in names]
        ranges = [report.share_range(name, share) for name in names]
        lower = [abs(low - value) for (low, _), value in zip(ranges, values, strict=True)]
        upper = [abs(high - value) for (_, high), value in zip(ranges, values, strict=True)]
        offset = (index - (len(known) - 1) / 2) * height
        panel.barh(
            [row + offset for row in range(len(names))],
            values,
            height=height,
            xerr=[lower, upper],
            color=colour,
            ecolor="grey",
            label=share.replace("_", " "),
        )
    panel.set(yticks=[], xlim=(0, 1), ylim=(len(names) - 0.5, -0.5), xlabel="share of the answers")
    panel.legend(
        fontsize=7, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(known)
    )


def interference_figure(report: Measures) -> Figure:
    """How much worse a subspace's own data set becomes in compositions with others.

    In nats a token; a composition without the subspace stays white.

    Args:
        report: What `roadint.evaluate` or `roadint.evaluation.report.over_seeds` returns.
    """
    worse = report.interference
    names = list(
        dict.fromkeys(name for by_composition in worse.values() for name in by_composition)
    )
    grid = [
        [by_composition.get(name, float("nan")) for name in names]
        for by_composition in worse.values()
    ]
    return heat_figure(
        grid,
        list(worse),
        names,
        rows_are="data set",
        columns_are="composition",
        values_are="nats a token worse than alone",
    )
