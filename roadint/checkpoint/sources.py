"""The places from which others may open checkpoints: one folder, and the public hub.

A source is the absolute path of a folder, or a hub id.
"""

import os
import re
from pathlib import Path

from roadint.checkpoint.format import CONFIG, WHILE_TRAINING
from roadint.checkpoint.public_hub import CHECKPOINT_FILES, PublicHub
from roadint.errors import RoadError, did_you_mean, listing, quoted

_HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")


class CheckpointSources:
    """The allowed folder and the hub.

    Args:
        folder: The absolute path below which checkpoints may be opened.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._hub = folder, PublicHub()

    def in_folder(self) -> list[str]:
        """The checkpoints in the folder, by their paths relative to it."""
        if not self.folder.is_dir():
            return []
        paths = [path.parent.relative_to(self.folder) for path in sorted(self.folder.rglob(CONFIG))]
        return [str(path) for path in paths if WHILE_TRAINING not in path.parts]

    def source_of(self, name: str) -> str:
        """The source that a name from a page or a client means.

        Args:
            name: A path in the folder, or a hub id.

        Returns:
            The source.

        Raises:
            RoadError: where the name means anything else.
        """
        name = name.strip()
        if not name:
            raise RoadError("no checkpoint chosen: expected one of the folder, or a hub id")
        path = self._path_below(name)
        if path is not None and os.path.isdir(path):
            return str(path)
        if path is not None and _HUB_ID.fullmatch(name) and ".." not in name:
            return name
        raise RoadError(
            f"checkpoint {quoted(name)} is not in the allowed folder: {self._expected(name)}"
        )

    def name_of(self, source: str) -> str:
        """The name that `source_of` takes for a source."""
        path = Path(source)
        return str(path.relative_to(self.folder)) if path.is_absolute() else source

    def path_of(self, source: str) -> Path:
        """The folder of a source's files; those of the hub are downloaded.

        Args:
            source: What `source_of` returned.

        Returns:
            A folder.

        Raises:
            RoadError: where the hub does not have it, or not publicly.
        """
        if Path(source).is_absolute():
            return Path(source)
        try:
            return self._hub.folder_of(source)
        except RoadError as error:
            raise RoadError(
                f"checkpoint {quoted(source)} is not in the allowed folder, "
                f"nor from the hub ({error}): {self._expected(source)}"
            ) from None

    def _path_below(self, name: str) -> Path | None:
        """The path, where it and its files are below the folder, with links followed; else None."""
        if "\\" in name or ":" in name:  # Windows would look elsewhere
            return None
        try:
            path = (self.folder / name).resolve()
            files = [path, *((path / name).resolve() for name in CHECKPOINT_FILES)]
        except (OSError, ValueError, RuntimeError):  # impossible names, links in a circle
            return None
        return path if all(file.is_relative_to(self.folder) for file in files) else None

    def _expected(self, name: str) -> str:
        known = self.in_folder()
        return f"expected one of {listing(known)}, or a hub id{did_you_mean(name, known)}"
