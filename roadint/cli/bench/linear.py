"""`roadint bench linear`: adapters on linear layers."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.table import Table

from roadint.cli.bench.options import Runs, Shape, check_outputs, check_shape
from roadint.cli.bench.output import keep_report
from roadint.cli.options import Json, Plot, ReportFile
from roadint.cli.output import console
from roadint.errors import RoadError, check_known, listing

_DTYPES = ("float32", "bfloat16")
_MODES = ("eager", "graph", "generate")


def linear(
    model: Annotated[
        str, typer.Option(help="For the decode; hub id, folder or short name.")
    ] = "smollm2-135m",
    shape: Shape = None,
    part: Annotated[
        list[str] | None,
        typer.Option(
            help="layer, decode, merge, memory, prefill or traffic, repeatable; the first four by "
            "default."
        ),
    ] = None,
    width: Annotated[
        list[int] | None,
        typer.Option(min=2, help="Of a layer, repeatable; 576 to 4,096 by default."),
    ] = None,
    dtype: Annotated[
        list[str] | None, typer.Option(help="float32 or bfloat16, repeatable; both by default.")
    ] = None,
    mode: Annotated[
        list[str] | None,
        typer.Option(
            help="Of a shape's decode: eager, graph (captured by hand, on a GPU) or generate (as "
            "users call it, compiled on a GPU), repeatable; the first two by default."
        ),
    ] = None,
    runs: Runs = 15,
    out: ReportFile = None,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Mixed batches, merging and training memory of adapters on linear layers.

    Beside them: PEFT, and a LoRA of batched products.
    """
    from roadint.bench.linear import DEFAULT_PARTS, PARTS, WIDTHS, bench_linear

    check_outputs(out, plot)
    check_shape(shape)
    for name in part or ():
        check_known("part", name, PARTS)
    for name in dtype or ():
        check_known("dtype", name, _DTYPES)
    for name in mode or ():
        check_known("mode", name, _MODES)
    if mode and shape is None:
        raise RoadError("--mode is for the steps of a shape: expected --shape, such as llama-7b")
    drawn = {"layer", "decode"}
    if plot is not None and drawn.isdisjoint(part or DEFAULT_PARTS):
        raise RoadError(f"--plot draws the parts {listing(sorted(drawn))}: expected one of them")
    report = bench_linear(
        model,
        shape=shape,
        parts=part or DEFAULT_PARTS,
        widths=width or WIDTHS,
        dtypes=dtype or _DTYPES,
        modes=mode or _MODES[:2],  # type: ignore[arg-type]
        runs=runs,
        quiet=as_json,
    )
    keep_report(report, out, plot, as_json, "linear_figure", show=_show)


def _show(report: Mapping[str, Any]) -> None:
    console.print(_table(report))


def _table(report: Mapping[str, Any]) -> Table:
    table = Table(
        "case",
        "dtype",
        "rows × tokens, or layers",
        "width",
        "adapters",
        "system",
        "median",
        "over the base",
    )
    for case in report["cases"]:
        table.add_row(
            ", ".join(case[key] for key in ("name", "mode") if key in case),
            case["dtype"],
            _size(case),
            str(case.get("width", "")),
            str(case.get("adapters", "")),
            case["system"],
            _result(case),
            _over_base(case),
        )
    return table


def _over_base(case: Mapping[str, Any]) -> str:
    if "launches_beside" in case:
        beside, read = case["launches_beside"], case["parameters_over_base"]
        return f"{beside:+} launches, {read:.4f} of the parameters"
    return f"{case['over_base']:.2f}" if "over_base" in case else ""


def _size(case: Mapping[str, Any]) -> str:
    if "rows" in case:
        return f"{case['rows']} × {case.get('tokens', 1)}"
    return str(case.get("layers", ""))


def _result(case: Mapping[str, Any]) -> str:
    if "median_s" in case:
        return f"{1000 * case['median_s']:.2f} ms"
    if "launches" in case:
        return f"{case['launches']:,} launches, {case['parameter_mb']:,.1f} MB of parameters"
    return case.get("error") or f"{case['copies_kept']} copies kept"
