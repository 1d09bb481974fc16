"""`roadint merge`, `roadint export` and `roadint import`: adapters into plain models, and to and from PEFT."""

from pathlib import Path
from typing import Annotated

import typer

from roadint.cli.terminal import Base, Json, check_folder, console, print_json
from roadint.errors import RoadError, check_known, quoted
from roadint.files.atomic import whole_folder

Checkpoint = Annotated[str, typer.Argument(help="Folder or hub id of a checkpoint.")]
Out = Annotated[Path, typer.Option(help="Folder for the result; a new or an empty one.")]


def merge(
    checkpoint: Checkpoint,
    out: Out,
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
    """Write a plain transformers model with adapters merged into its weights; it loads without roadint."""
    from roadint.model.opening import open_checkpoint

    check_folder("--out", out, new=True)
    _check_adapters(checkpoint)
    road, tokenizer = open_checkpoint(checkpoint, model, [compose], dtype=dtype)
    report = road.merge(compose)
    with whole_folder(out, last="config.json") as scratch:
        road.model.save_pretrained(scratch)
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
    console.print(
        f"{out}: {report.composition} merged into {len(report.rounding)} layers"
        + (
            f"; rounding takes at most {100 * worst:.1f} % of a layer's change"
            if worst
            else "; nothing rounded away"
        ),
        highlight=False,
    )


def export(
    checkpoint: Checkpoint,
    out: Out,
    adapter: Annotated[str | None, typer.Option(help="Which one; the only one by default.")] = None,
    model: Base = None,
    as_json: Json = False,
) -> None:
    """Write an adapter as a PEFT RoAd checkpoint, for PeftModel.from_pretrained."""
    from roadint.interop.peft import export as write
    from roadint.model.opening import open_checkpoint

    check_folder("--out", out, new=True)
    _check_adapters(checkpoint, adapter)
    road, _ = open_checkpoint(checkpoint, model, None)
    size = write(road, out, adapter)
    if as_json:
        print_json({"out": str(out), "bytes": size})
        return
    console.print(
        f"{out}: {size:,} bytes, for PeftModel.from_pretrained(model, {str(out)!r})",
        highlight=False,
    )


def import_(
    source: Annotated[str, typer.Argument(help="Folder or hub id of a PEFT RoAd checkpoint.")],
    out: Out,
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
    from roadint.interop import peft
    from roadint.model import checkpoint
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
    size = checkpoint.size_of(out)
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
    console.print(
        f"{out}: {adapter.variant}, {len(adapter.layout.paths)} layers, {size:,} bytes",
        highlight=False,
    )


def _check_adapters(checkpoint: str, name: str | None = None) -> None:
    """Raises RoadError, before a model is loaded, for a checkpoint without adapters, or without the one of that name."""
    from roadint.model.checkpoint import folder_of, read

    names = [spec["name"] for spec in read(folder_of(checkpoint)).config.get("adapters", ())]
    if not names:
        raise RoadError(
            f"{quoted(checkpoint)} holds no adapters of linear layers: an edit of hidden states has no form as weights"
        )
    if name is not None:
        check_known("adapter", name, names)
