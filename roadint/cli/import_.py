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
    name: Annotated[str, typer.Option(help="Of the adapter in compositions.")] = "road",
    labels: Annotated[
        int | None, typer.Option(min=1, help="Of a classifier: how many classes.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Turn a PEFT RoAd checkpoint into one of roadint's."""
    from roadint.checkpoint.reading import size_of
    from roadint.interop import peft
    from roadint.model.pretrained import load
    from roadint.model.road_model import RoadModel

    check_folder("--out", out, new=True)
    base_id = model or peft.base_of(source)
    if not base_id:
        raise RoadError(f"{source} does not say which base model it is for: expected --model")
    base, _ = load(base_id, labels=labels)
    road = RoadModel(base)
    adapter = peft.load(road, source, name)
    road.save_pretrained(out)
    size = size_of(out)
    if as_json:
        print_json(
            {
                "out": str(out),
                "bytes": size,
                "targets": len(adapter.layout.paths),
                "numbers": adapter.trainable_count,
            }
        )
        return
    print_line(f"{out}: {adapter.variant}, {len(adapter.layout.paths)} layers, {size:,} bytes")
