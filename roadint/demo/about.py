"""What a checkpoint is, in a line for visitors."""

from roadint.checkpoint.content import Checkpoint
from roadint.checkpoint.reading import size_of


def about(checkpoint: Checkpoint) -> str:
    """Where a checkpoint acts, how many numbers it has, what it learned from, and its size.

    Args:
        checkpoint: The checkpoint.

    Returns:
        Such as "layers 6 and 9, last(5), road_1, basis random · 1,280 numbers · 240 + 240 rows ·
        8 kB".
    """
    edits = checkpoint.config["interventions"]
    adapters = checkpoint.config.get("adapters", ())
    training = checkpoint.config["training"]
    parts = []
    if edits:
        layers = sorted({edit["layer"] for edit in edits})
        said = [
            f"layer{'s' * (len(layers) > 1)} {_listed(layers)}",
            *_distinct(edits, "position"),
            *_distinct(edits, "variant"),
            *(f"basis {basis}" for basis in _distinct(edits, "basis") if basis != "identity"),
        ]
        parts.append(", ".join(said))
    parts += [f"{len(adapter['paths'])} linear layers" for adapter in adapters]
    if isinstance(training.get("trainable"), int):
        parts.append(f"{training['trainable']:,} numbers")
    rows = training.get("rows")
    if isinstance(rows, dict) and rows:
        parts.append(f"{' + '.join(str(count) for count in rows.values())} rows")
    parts.append(f"{max(1, round(size_of(checkpoint.folder) / 1000)):,} kB")
    return " · ".join(parts)


def _distinct(edits: list[dict[str, object]], name: str) -> list[str]:
    return list(dict.fromkeys(str(edit[name]) for edit in edits if name in edit))


def _listed(layers: list[int]) -> str:
    *most, last = map(str, layers)
    return f"{', '.join(most)} and {last}" if most else last
