"""`roadint eval`: the report as tables, JSON and a picture."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from roadint.cli.terminal import (
    Added,
    Base,
    Composed,
    Data,
    Json,
    NewTokens,
    Prompts,
    Rows,
    check_file,
    check_picture,
    console,
    pairs,
    report_json,
)
from roadint.errors import RoadError


def evaluate(
    checkpoints: Annotated[
        list[str],
        typer.Argument(help="Folder or hub id of a checkpoint; several seeds of one recipe."),
    ],
    data: Data = None,
    prompts: Prompts = None,
    compose: Composed = None,
    add: Added = None,
    rows: Rows = None,
    max_completion: Annotated[
        int, typer.Option(min=1, help="Cut references at this many tokens.")
    ] = 64,
    max_new_tokens: NewTokens = 48,
    max_prompts: Annotated[int | None, typer.Option(min=1, help="Only the first prompts.")] = None,
    language: Annotated[
        str, typer.Option(help="The language that a success is in, as ISO 639-1 code.")
    ] = "de",
    out: Annotated[
        Path | None, typer.Option(help="Also write the report, as JSON, to this file.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write a picture of the report (.png, .svg, .pdf).")
    ] = None,
    model: Base = None,
    as_json: Json = False,
) -> None:
    """Measure compositions: likelihood of references; language, topic and form of answers. Bundled development data by default."""
    from roadint.data.sources import check_sources, load_prompts
    from roadint.evaluation.language import check_language
    from roadint.evaluation.evaluate import evaluate as measure
    from roadint.evaluation.report import Report, over_seeds
    from roadint.model.opening import open_checkpoint

    check_file("--out", out)
    check_picture("--plot", plot)
    check_language(language)
    added, given = pairs(add, "--add"), pairs(data, "--data") or None
    check_sources(given or {}, rows)
    asked = load_prompts(prompts or "bundled:prompts_paper", max_prompts)
    if len(set(checkpoints)) < len(checkpoints):
        raise RoadError(f"a checkpoint is given twice: {', '.join(checkpoints)}")
    reports = {}
    base: Any = None
    for each in checkpoints:
        road, tokenizer = open_checkpoint(each, model, compose, added, base)
        base = (road.model, tokenizer)
        reports[each] = measure(
            road,
            tokenizer,
            given,
            asked,
            compose=compose,
            rows=rows,
            language=language,
            max_completion=max_completion,
            max_new_tokens=max_new_tokens,
            quiet=as_json,
        )
    report: Report = reports[checkpoints[0]] if len(reports) == 1 else over_seeds(reports)
    shown = asdict(report)
    report_json(shown, out, as_json)
    if plot is not None:
        from roadint.plots import composition_figure

        composition_figure(report).savefig(plot, dpi=150)
    if not as_json:
        for table in _tables(shown, language):
            console.print(table)


def _tables(report: Mapping[str, Any], language: str) -> list[Table]:
    """References and answers by composition; gains and interference below, where there are any."""
    spread = report.get("spread")

    def figure(value: float | None, *path: str, share: bool = False) -> str:
        """With ± the spread over seeds, where there are several."""
        if value is None:
            return "–"
        form = ".0%" if share else ".2f"
        around: Any = spread
        for name in path:
            around = around.get(name) if around else None
        return f"{value:{form}}" if around is None else f"{value:{form}} ± {around:{form}}"

    sets = list(next(iter(report["nll"].values())))
    likelihood = Table("composition", *sets, "KL from none", title="references, nats a token")
    answers = Table(
        "composition",
        "languages",
        "on topic",
        f"success ({language})",
        "degenerate",
        "lists",
        title="answers",
    )
    for composition, values in report["nll"].items():
        likelihood.add_row(
            composition,
            *(figure(values[name], "nll", composition, name) for name in sets),
            figure(report["kl"][composition], "kl", composition),
        )
        languages = ", ".join(
            f"{code} {share:.0%}"
            for code, share in report["language"][composition].items()
            if share >= 0.005
        )
        shares = report["shares"][composition]
        columns = [
            figure(value, "shares", composition, name, share=True) for name, value in shares.items()
        ]
        answers.add_row(composition, languages, *columns)
    tables = [likelihood, answers]
    if report["gain"]:
        gain = Table(
            "composition",
            *sets,
            title="gain: the best of none and the parts alone, minus the composition, nats a token",
        )
        for composition, values in report["gain"].items():
            gain.add_row(
                composition, *(figure(values[name], "gain", composition, name) for name in sets)
            )
        tables.append(gain)
    if report["interference"]:
        moved = Table(
            "data",
            "composition",
            "nats a token",
            title="interference: the composition minus the subspace alone, on its own data",
        )
        for name, others in report["interference"].items():
            for composition, value in others.items():
                moved.add_row(name, composition, figure(value, "interference", name, composition))
        tables.append(moved)
    return tables
