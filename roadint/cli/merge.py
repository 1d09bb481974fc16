"""`roadint merge`: adapters into the weights of a plain model."""

from typing import Annotated, Any

import typer

from roadint.cli.checks import check_adapters, check_folder
from roadint.cli.options import Base, CheckpointName, Folder, Json
from roadint.cli.output import print_json, print_line
from roadint.files.atomic import whole_folder


def merge(
    checkpoint: CheckpointName,
    out: Folder,
    compose: Annotated[
        str,
        typer.Option("--compose", help="A composition of adapters: 'math', '0.5*math + german'."),
    ] = "all",
    model: Base = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of the written weights; that of the training by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a plain transformers model with adapters merged in; it loads without roadint."""
    from roadint.model.opening import open_checkpoint

    check_folder("--out", out, new=True)
    check_adapters(checkpoint)
    road, tokenizer = open_checkpoint(checkpoint, model, [compose], dtype=dtype)
    stored: Any = road.model.config.dtype
    if dtype is None and stored not in (None, road.model.dtype):
        road.model.to(stored)  # what is written does not depend on what this CPU computes in
    report = road.merge(compose)
    with whole_folder(out, last="config.json") as scratch:
        road.model.save_pretrained(scratch)  # type: ignore[operator]
        tokenizer.save_pretrained(scratch)
    worst = max(report.rounding.values())
    if as_json:
        print_json(
            {
                "out": str(out),
                "composition": str(report.composition),
                "targets": len(report.rounding),
                "rounding": worst,
            }
        )
        return
    rounded = (
        f"rounding takes at most {100 * worst:.1f} % of a layer's change"
        if worst
        else "nothing rounded away"
    )
    print_line(f"{out}: {report.composition} merged into {len(report.rounding)} layers; {rounded}")
