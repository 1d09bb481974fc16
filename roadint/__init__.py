"""roadint: learn, compose, inspect and serve rotations of subspaces of a language model's hidden states (arXiv 2409.00119)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from roadint.version import __version__

if TYPE_CHECKING:
    from roadint.basis import Basis
    from roadint.composition import Composition
    from roadint.errors import RoadError
    from roadint.evaluation.report import evaluate
    from roadint.finetune import add_linear_road
    from roadint.interchange import RoadInterchange
    from roadint.interop.pyvene import pyvene_config
    from roadint.intervention import RoadIntervention
    from roadint.linear.layer import RoadLinear
    from roadint.model import RoadModel
    from roadint.position import Position
    from roadint.pretrained import load
    from roadint.rotation import Rotation
    from roadint.subspace import Partition, Subspace
    from roadint.training.recipe import Recipe
    from roadint.training.run import train
    from roadint.training.trainer import RoadTrainer

# Where each name lives. Loaded when first used: torch, transformers and pyvene take seconds, `import roadint` does not.
_HOMES = {
    "Basis": "basis",
    "Composition": "composition",
    "Partition": "subspace",
    "Position": "position",
    "Recipe": "training.recipe",
    "RoadError": "errors",
    "RoadInterchange": "interchange",
    "RoadIntervention": "intervention",
    "RoadLinear": "linear.layer",
    "RoadModel": "model",
    "RoadTrainer": "training.trainer",
    "Rotation": "rotation",
    "Subspace": "subspace",
    "add_linear_road": "finetune",
    "evaluate": "evaluation.report",
    "load": "pretrained",
    "pyvene_config": "interop.pyvene",
    "train": "training.run",
}

__all__ = [
    "Basis",
    "Composition",
    "Partition",
    "Position",
    "Recipe",
    "RoadError",
    "RoadInterchange",
    "RoadIntervention",
    "RoadLinear",
    "RoadModel",
    "RoadTrainer",
    "Rotation",
    "Subspace",
    "__version__",
    "add_linear_road",
    "evaluate",
    "load",
    "pyvene_config",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'roadint' has no attribute {name!r}")
    value = getattr(import_module(f"roadint.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
