"""What reading and writing agree on: the format's number, the files' names, the SHA-256."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

FORMAT = 2  # 1 knows no adapters; a checkpoint without them is still written as 1
TENSORS, CONFIG = "road.safetensors", "road.json"
WHILE_TRAINING = "checkpoints"  # the folder inside the output of a run that is not finished


def digest(config: Mapping[str, Any], payload: bytes) -> str:
    """The SHA-256 over both files.

    Args:
        config: The content of the JSON file; its own "sha256" does not count.
        payload: The bytes of the file of tensors.
    """
    described = {key: value for key, value in config.items() if key != "sha256"}
    text = json.dumps(described, sort_keys=True)
    return hashlib.sha256(text.encode() + b"\0" + payload).hexdigest()
