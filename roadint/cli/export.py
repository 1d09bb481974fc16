"""`roadint export`: an adapter to PEFT."""

from typing import Annotated

import typer

from roadint.cli.checks import check_adapters, check_folder
from roadint.cli.options import Base, CheckpointName, Folder, Json
from roadint.cli.output import print_json, print_line


def export(
    checkpoint: CheckpointName,
    out: Folder,
    adapter: Annotated[str | None, typer.Option(help="Which one; the only one by default.")] = None,
    model: Base = None,
    as_json: Json = False,
) -> None:
    """Write an adapter as a PEFT RoAd checkpoint, for PeftModel.from_pretrained."""
    from roadint.interop.peft import export as write
    from roadint.model.opening import open_checkpoint

    check_folder("--out", out, new=True)
    check_adapters(checkpoint, adapter)
    road, _ = open_checkpoint(checkpoint, model, None)
    size = write(road, out, adapter)
    if as_json:
        print_json({"out": str(out), "bytes": size})
        return
    print_line(f"{out}: {size:,} bytes, for PeftModel.from_pretrained(model, {str(out)!r})")
