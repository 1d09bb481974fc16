"""`roadint push`: a checkpoint to the hub."""

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer

from roadint.cli.options import Json
from roadint.cli.output import print_json, print_line
from roadint.errors import RoadError, first_line, quoted


def push(
    checkpoint: Annotated[str, typer.Argument(help="Folder of a checkpoint.")],
    repository: Annotated[str, typer.Argument(help="NAME or OWNER/NAME on the hub.")],
    report: Annotated[
        Path | None, typer.Option(help="What `roadint eval --out` wrote, for the model card.")
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository private.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Upload a checkpoint with a model card: data, figures, a picture of its blocks."""
    from roadint.checkpoint.format import CONFIG, TENSORS
    from roadint.checkpoint.reading import folder_of, read
    from roadint.inspection.angles import turns_blocks
    from roadint.model.card import PICTURE, model_card
    from roadint.model.saving import push as upload
    from roadint.plots import block_figure

    saved = read(folder_of(checkpoint))
    measured = None if report is None else _read(report)
    turning = [edit for edit in saved.interventions() if turns_blocks(edit)]

    def write(folder: Path, full_id: str) -> None:
        for name in (CONFIG, TENSORS):
            shutil.copyfile(saved.folder / name, folder / name)
        read(folder)  # refused where a save changed one of the two in between
        if turning:
            block_figure(turning).savefig(folder / PICTURE, dpi=110)
        card = model_card(full_id, saved.config, measured, pictured=bool(turning))
        (folder / "README.md").write_text(card, encoding="utf-8")

    try:
        address = upload(repository, write, private=private, token=None)
    except RoadError:
        raise
    except Exception as error:  # of the hub's client: no network, no login, no such name
        raise RoadError(
            f"{quoted(repository)} can't be uploaded ({first_line(error)}): expected OWNER/NAME, "
            "and `hf auth login` before"
        ) from None
    if as_json:
        print_json({"address": address})
    else:
        print_line(f"{checkpoint}: {address}")


def _read(path: Path) -> dict[str, object]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(report, dict) and "metric" in report:
            raise RoadError(
                f"--report {quoted(str(path))} is that of a task, of which cards don't tell: "
                "expected none"
            )
        {name: report["shares"][name]["success"] for name in report["nll"]}
    except (ValueError, KeyError, TypeError):
        raise RoadError(
            f"--report {quoted(str(path))} is no report: expected what roadint eval --out wrote"
        ) from None
    return dict(report)
