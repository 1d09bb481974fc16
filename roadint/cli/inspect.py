"""`roadint inspect`: what a checkpoint learned, as tables or JSON."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from roadint.cli.checks import check_picture
from roadint.cli.options import CheckpointName, Json
from roadint.cli.output import console, print_json
from roadint.errors import RoadError, listing

if TYPE_CHECKING:
    from roadint.interventions.base import SubspaceIntervention


def inspect(
    checkpoint: CheckpointName,
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
    from roadint.checkpoint.reading import folder_of, read
    from roadint.inspection.angles import adapter_values, intervention_values

    check_picture("--plot", plot)
    saved = read(folder_of(checkpoint))
    interventions, config = saved.interventions(), saved.config
    if plot is not None:
        _draw(plot, checkpoint, interventions)
    adapters = [adapter_values(spec, theta, alpha) for spec, theta, alpha in saved.adapter_values()]
    sites = [intervention_values(intervention) for intervention in interventions]
    if as_json:
        about = {name: config[name] for name in ("base_model", "training")}
        edited = {} if prompt is None else {"edited": _edited(checkpoint, prompt)}
        print_json({**about, "sites": sites, "adapters": adapters, **edited})
        return
    base = config["base_model"]
    console.print(
        f"{checkpoint}: on {base['id']} (width {base['width']}, {base['layers']} layers)",
        highlight=False,
    )
    for intervention, site in zip(interventions, sites, strict=True):
        _print_site(intervention, site, blocks)
    for adapter in adapters:
        console.print(_adapter_table(adapter))
    if prompt is not None:
        console.print(_edited(checkpoint, prompt), highlight=False)


def _edited(checkpoint: str, prompt: str) -> str:
    """The interventions, and the prompt with its edited tokens marked."""
    from roadint.model.opening import open_checkpoint

    road, tokenizer = open_checkpoint(checkpoint, None, None)
    return road.describe(tokenizer, prompt)


def _draw(plot: Path, checkpoint: str, interventions: Sequence["SubspaceIntervention"]) -> None:
    from roadint.inspection.angles import turns_blocks
    from roadint.plots import block_figure

    if not any(turns_blocks(intervention) for intervention in interventions):
        held = listing(intervention.kind for intervention in interventions)
        raise RoadError(
            f"--plot {plot}: {checkpoint} has no rotations of hidden states to draw, "
            f"only {held if interventions else 'adapters'}"
        )
    block_figure(interventions).savefig(plot, dpi=150)


def _print_site(
    intervention: "SubspaceIntervention", site: Mapping[str, Any], blocks: bool
) -> None:
    from roadint.inspection.angles import turns_blocks

    if not turns_blocks(intervention):
        count = f"{intervention.trainable_count:,} numbers"
        console.print(f"{intervention}: {count}", highlight=False)
        return
    basis = site.get("basis", "identity")
    title = (
        f"layer {site['layer']} {site['component']}, position {site['position']}, "
        f"{intervention.short_name}{'' if basis == 'identity' else f', {basis} basis'}"
    )
    console.print(_blocks_table(site, title) if blocks else _subspaces_table(site, title))


def _subspaces_table(site: Mapping[str, Any], title: str) -> Table:
    columns = (
        "subspace",
        "dims",
        "blocks",
        "mean |θ|, radians",
        "max |θ|",
        "mean |log α|",
        "most turned (block: θ, α)",
    )
    table = Table(*columns, title=title)
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


def _blocks_table(site: Mapping[str, Any], title: str) -> Table:
    table = Table("block", "dims", "subspace", "θ (radians)", "α", title=title)
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


def _adapter_table(adapter: Mapping[str, Any]) -> Table:
    lora = f", LoRA r={adapter['lora_rank']}" if adapter["lora_rank"] else ""
    heads = f", heads {', '.join(adapter['heads'])}" if adapter["heads"] else ""
    layers = f"{len(adapter['paths'])} layers"
    title = f"adapter {adapter['name']}: {adapter['variant']}, {layers}{lora}{heads}"
    table = Table("layers", "of them", "blocks", "mean |θ|", "max |θ|", "mean |log α|", title=title)
    for kind, values in adapter["kinds"].items():
        figures = (
            f"{values[key]:.3f}"
            for key in ("mean_abs_angle", "max_abs_angle", "mean_abs_log_scale")
        )
        table.add_row(kind, str(values["layers"]), f"{values['blocks']:,}", *figures)
    return table
