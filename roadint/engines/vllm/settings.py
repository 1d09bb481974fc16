"""What `additional_config["roadint"]` of an engine may say."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from roadint.errors import RoadError, did_you_mean, listing, quoted
from roadint.grammar.subspace import check_label

KEY = "roadint"
"""The name of roadint's part in `additional_config`, and in `extra_args` of a request."""

ARMED = "armed"  # written by a worker: what was armed is part of the key of compiled graphs


@dataclass(frozen=True)
class Settings:
    """roadint's configuration of one engine.

    Args:
        checkpoints: Label → folder or hub id. The names of a checkpoint are "name@label"; those of
            the label "" are plain.
        layers: Layers, from 0, that checkpoints which are loaded later may edit, beside those of
            `checkpoints`.
        adapters: Whether checkpoints that are loaded later may have adapters.
        folder: The folder from which checkpoints may be loaded over HTTP; None for none.
    """

    checkpoints: Mapping[str, str] = field(default_factory=dict)
    layers: tuple[int, ...] = ()
    adapters: bool = False
    folder: str | None = None

    @classmethod
    def of(cls, additional_config: Any) -> "Settings | None":
        """Read an engine's `additional_config`.

        Returns:
            The settings; None where it says nothing of roadint.

        Raises:
            RoadError: for anything unknown, or of another type.
        """
        given = additional_config.get(KEY) if isinstance(additional_config, Mapping) else None
        if given is None:
            return None
        if not isinstance(given, Mapping):
            raise RoadError(
                f"additional_config[{KEY!r}] is {quoted(given)}: expected a mapping such as "
                "{'checkpoints': {'a': 'runs/german-english'}}"
            )
        known = ("checkpoints", "layers", "adapters", "folder", ARMED)
        for name in given:
            if name not in known:
                raise RoadError(
                    f"additional_config[{KEY!r}] has {quoted(name)}: expected {listing(known[:-1])}"
                    f"{did_you_mean(name, known[:-1])}"
                )
        adapters, folder = given.get("adapters", False), given.get("folder")
        if not isinstance(adapters, bool):
            raise RoadError(f"adapters={quoted(adapters)}: expected true or false")
        if folder is not None and not isinstance(folder, str):
            raise RoadError(f"folder={quoted(folder)}: expected a path, such as 'runs'")
        return cls(
            _checkpoints(given.get("checkpoints", {})),
            _layers(given.get("layers", ())),
            adapters,
            folder,
        )

    def as_json(self) -> dict[str, Any]:
        """As `additional_config["roadint"]` has it."""
        return {
            "checkpoints": dict(self.checkpoints),
            "layers": list(self.layers),
            "adapters": self.adapters,
            "folder": self.folder,
        }


def _checkpoints(given: Any) -> dict[str, str]:
    if not isinstance(given, Mapping):
        raise RoadError(
            f"checkpoints={quoted(given)}: expected a mapping of labels to folders or hub ids"
        )
    for label, path in given.items():
        check_served_label(label)
        if not isinstance(path, str):
            raise RoadError(
                f"checkpoint {quoted(label)} is {quoted(path)}: expected a folder or a hub id"
            )
    return dict(given)


def check_served_label(label: Any) -> str:
    """Check the label of a checkpoint that is served; "" stands for none.

    Raises:
        RoadError: where it is no plain word.
    """
    if label != "":
        check_label(label)
    return str(label)


def _layers(given: Any) -> tuple[int, ...]:
    listed = list(given) if isinstance(given, (list, tuple)) else [given]
    for layer in listed:
        if isinstance(layer, bool) or not isinstance(layer, int) or layer < 0:
            raise RoadError(f"layers={quoted(given)}: expected a list of indices from 0")
    return tuple(sorted(set(listed)))
