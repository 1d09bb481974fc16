"""Public checkpoints of the Hugging Face hub, downloaded with limits."""

import threading
import time
from collections import deque
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from roadint.checkpoint.format import CONFIG, TENSORS
from roadint.errors import RoadError, first_line

CHECKPOINT_FILES = (CONFIG, TENSORS)
_MAX_BYTES = 256 << 20  # of one checkpoint
_MAX_LOOKUPS, _PERIOD = 32, 3600.0  # in so many seconds
_MAX_DOWNLOADS = 256  # while the app runs


class PublicHub:
    """Downloads checkpoints once; local folders of the same names are ignored."""

    def __init__(self) -> None:
        self._lookups: deque[float] = deque()
        self._folders: dict[str, Path] = {}
        self._fetching = threading.Lock()

    def folder_of(self, repository: str) -> Path:
        """Download a checkpoint.

        Args:
            repository: The id, OWNER/NAME.

        Returns:
            The folder of the local copy.

        Raises:
            RoadError: where there is none, it is too large, or too many were asked for.
        """
        if repository in self._folders:
            return self._folders[repository]
        if not self._fetching.acquire(timeout=30):
            raise RoadError("another one is being fetched from the hub: try again in a minute")
        try:
            if repository not in self._folders:
                self._count_lookup()
                self._folders[repository] = _download(repository)
            return self._folders[repository]
        finally:
            self._fetching.release()

    def _count_lookup(self) -> None:
        now = time.monotonic()
        while self._lookups and now - self._lookups[0] > _PERIOD:
            self._lookups.popleft()
        if len(self._lookups) >= _MAX_LOOKUPS or len(self._folders) >= _MAX_DOWNLOADS:
            raise RoadError("too many were asked of the hub lately, try again later")
        self._lookups.append(now)


def _download(repository: str) -> Path:
    # token=False: visitors get nothing that only this machine's owner may read.
    reason = ""
    try:
        about = huggingface_hub.HfApi(token=False).model_info(
            repository, files_metadata=True, timeout=10
        )
    except (RepositoryNotFoundError, GatedRepoError):
        raise RoadError("the hub has none of that name that anybody may read") from None
    except Exception as error:  # without a connection, a copy from before will do
        reason = first_line(error)
    else:
        files = [file for file in about.siblings or () if file.rfilename in CHECKPOINT_FILES]
        size = sum(file.size or 0 for file in files)
        if size > _MAX_BYTES:
            raise RoadError(f"that of the hub has {size >> 20} MiB, more than {_MAX_BYTES >> 20}")
    try:
        # What was not looked up may be of any size: then only a copy from before.
        folder = huggingface_hub.snapshot_download(
            repository,
            allow_patterns=list(CHECKPOINT_FILES),
            token=False,
            local_files_only=bool(reason),
        )
    except Exception as error:  # whatever the hub, the network or the name's validation raise
        raise RoadError(f"no reachable hub repository ({reason or first_line(error)})") from None
    return Path(folder)
