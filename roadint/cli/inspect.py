"""`roadint inspect`: what a checkpoint learned, as tables or JSON."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from roadint.cli.checks import check_picture
from roadint.cli.options import Json
from roadint.cli.output import console, print_json
from roadint.errors import RoadError, listing

Checkpoint = Annotated[str, typer.Argument(help="Folder or hub id of a trained checkpoint.")]


def inspect(
    checkpoint: Checkpoint,
    plot: Annotated[
        Path | None,
        typer.Option(help="Write a picture of all angles and scales (.png, .svg, .pdf)."),
    ] = None,
    blocks: Annotated[
        bool, typer.Option(help="Print every block instead of the most turned ones.")
    ] = False,
    prompt: Annotated[
        str | None,
        typer.Option(help="Show which tokens of this prompt are edited (loads the model)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print angle and scale of the blocks of each subspace, and of the layers of each adapter."""
    from roadint.inspection.angles import adapter_values, block_values
    from roadint.interventions.road import RoadIntervention
    from roadint.model.checkpoint import folder_of, read
    from roadint.model.opening import open_checkpoint

    check_picture("--plot", plot)
    saved = read(folder_of(checkpoint))
    interventions, config = saved.interventions(), saved.config
    turning = [each for each in interventions if isinstance(each, RoadIntervention)]
    if plot is not None:
        from roadint.plots import block_figure

        if not turning:
            held = listing(each.kind for each in interventions) or "adapters"
            raise RoadError(
                f"--plot {plot}: {checkpoint} has no rotations of hidden states to draw, only {held}"
            )
        block_figure(turning).savefig(plot, dpi=150)
    adapters = [adapter_values(spec, theta, alpha) for spec, theta, alpha in saved.adapter_values()]
    values = [
        block_values(each) if isinstance(each, RoadIntervention) else each.spec()
        for each in interventions
    ]
    if as_json:
        print_json(
            {
                "base_model": config["base_model"],
                "training": config["training"],
                "sites": values,
                "adapters": adapters,
            }
        )
        return
    base = config["base_model"]
    console.print(
        f"{checkpoint}: on {base['id']} (width {base['width']}, {base['layers']} layers)",
        highlight=False,
    )
    for intervention, site in zip(interventions, values, strict=True):
        if isinstance(intervention, RoadIntervention):
            console.print(_blocks_table(site) if blocks else _subspaces_table(site))
        else:
            console.print(
                f"{intervention}: {intervention.trainable_count:,} numbers", highlight=False
            )
    for adapter in adapters:
        console.print(_adapter_table(adapter))
    if prompt is not None:
        road, tokenizer = open_checkpoint(checkpoint, None, None)
        console.print(road.describe(tokenizer, prompt), markup=False, highlight=False)


def _subspaces_table(site: Mapping[str, Any]) -> Table:
    columns = (
        "subspace",
        "dims",
        "blocks",
        "mean |θ|",
        "max |θ|",
        "mean |log α|",
        "most turned (block: θ, α)",
    )
    table = Table(*columns, title=_title(site))
    for name, subspace in site["subspaces"].items():
        listed = zip(subspace["blocks"], subspace["angles"], subspace["scales"], strict=True)
        turned = sorted(listed, key=lambda block: -max(map(abs, block[1])))
        table.add_row(
            name,
            subspace["range"],
            str(len(subspace["blocks"])),
            *(
                f"{subspace[key]:.3f}"
                for key in ("mean_abs_angle", "max_abs_angle", "mean_abs_log_scale")
            ),
            ", ".join(
                f"{block}: {angle[0]:+.2f}, {scale[0]:.2f}" for block, angle, scale in turned[:3]
            ),
        )
    return table


def _blocks_table(site: Mapping[str, Any]) -> Table:
    table = Table("block", "dims", "subspace", "θ (radians)", "α", title=_title(site))
    for name, subspace in site["subspaces"].items():
        for block, angles, scales in zip(
            subspace["blocks"], subspace["angles"], subspace["scales"], strict=True
        ):
            values = (
                ", ".join(f"{value:+.3f}" for value in angles),
                ", ".join(f"{value:.3f}" for value in scales),
            )
            table.add_row(str(block), f"[{2 * block}, {2 * block + 2})", name, *values)
    return table


def _title(site: Mapping[str, Any]) -> str:
    basis = "" if site["basis"] == "identity" else f", {site['basis']} basis"
    return f"layer {site['layer']} {site['component']}, position {site['position']}, {site['variant']}{basis}"


def _adapter_table(adapter: Mapping[str, Any]) -> Table:
    lora = f", LoRA r={adapter['lora_rank']}" if adapter["lora_rank"] else ""
    heads = f", heads {', '.join(adapter['heads'])}" if adapter["heads"] else ""
    title = f"adapter {adapter['name']}: {adapter['variant']}, {len(adapter['paths'])} layers{lora}{heads}"
    table = Table("layers", "of them", "blocks", "mean |θ|", "max |θ|", "mean |log α|", title=title)
    for kind, values in adapter["kinds"].items():
        figures = (
            f"{values[key]:.3f}"
            for key in ("mean_abs_angle", "max_abs_angle", "mean_abs_log_scale")
        )
        table.add_row(kind, str(values["layers"]), f"{values['blocks']:,}", *figures)
    return table
