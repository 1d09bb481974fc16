"""PEFT's RoAd checkpoints, in and out: `load(road, folder)`, `export(road, folder)`.

Neither needs PEFT.
"""

from roadint.interop.peft.checkpoint import base_of, export, load
from roadint.interop.peft.files import CONFIG, TENSORS
from roadint.interop.peft.values import as_peft, from_peft

__all__ = ["CONFIG", "TENSORS", "as_peft", "base_of", "export", "from_peft", "load"]
