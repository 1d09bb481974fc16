"""`roadint import`: an adapter from PEFT."""

from typing import Annotated

import typer

from roadint.cli.checks import check_folder
from roadint.cli.options import Folder, Json
from roadint.cli.output import print_json, print_line
from roadint.errors import RoadError


def import_(
    source: Annotated[str, typer.Argument(help="Folder or hub id of a PEFT RoAd checkpoint.")],
    out: Folder,
    model: Annotated[
        str | None, typer.Option("--model", help="Base model; the checkpoint's own by default.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Of the adapter in compositions; the exported one, or road, by default."),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            help="Of prompts: plain, line, alpaca or chat; the exported one, or plain, by default."
        ),
    ] = None,
    labels: Annotated[
        int | None, typer.Option(min=1, help="Of a classifier: how many classes.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Turn a PEFT RoAd checkpoint into one of roadint's."""
    from roadint.checkpoint.reading import size_of
    from roadint.data.prompts import check_template
    from roadint.interop import peft
    from roadint.model.pretrained import load
    from roadint.model.road_model import RoadModel

    check_folder("--out", out, new=True)
    base_id = model or peft.base_of(source)
    if not base_id:
        raise RoadError(f"{source} does not say which base model it is for: expected --model")
    if template is not None:
        check_template(template)
    base, tokenizer = load(base_id, labels=labels)
    road = RoadModel(base)
    adapter = peft.load(road, source, name)
    road.template = check_template(template or road.template, tokenizer)
    road.save_pretrained(out)
    size = size_of(out)
    if as_json:
        print_json(
            {
                "out": str(out),
                "name": adapter.name,
                "template": road.template,
                "bytes": size,
                "targets": len(adapter.layout.paths),
                "numbers": adapter.trainable_count,
            }
        )
        return
    about = f"{adapter.name}, {adapter.variant}, {len(adapter.layout.paths)} layers"
    print_line(f"{out}: {about}, template of prompts {road.template}, {size:,} bytes")
