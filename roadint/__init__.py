"""roadint: learn, compose, inspect and serve rotations of subspaces of hidden states.

RoAd (2D rotary adaptation, arXiv 2409.00119) as an intervention, a finetuning method and batches in
which every row has a composition of its own.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from roadint.version import __version__

if TYPE_CHECKING:
    from roadint.adapters.adapter import RoadAdapter as RoadAdapter
    from roadint.adapters.layer import RoadLinear as RoadLinear
    from roadint.adapters.merging import Merged as Merged
    from roadint.engines.transformers.partial import Resumed as Resumed
    from roadint.errors import RoadError as RoadError
    from roadint.evaluation.evaluate import evaluate as evaluate
    from roadint.evaluation.report import Evaluation as Evaluation
    from roadint.evaluation.report import SeedsEvaluation as SeedsEvaluation
    from roadint.grammar.composition import Composition as Composition
    from roadint.grammar.position import Position as Position
    from roadint.grammar.subspace import Partition as Partition
    from roadint.grammar.subspace import Subspace as Subspace
    from roadint.interop.pyvene import pyvene_config as pyvene_config
    from roadint.interventions.direft import DireftIntervention as DireftIntervention
    from roadint.interventions.interchange import RoadInterchange as RoadInterchange
    from roadint.interventions.loreft import LoreftIntervention as LoreftIntervention
    from roadint.interventions.road import RoadIntervention as RoadIntervention
    from roadint.interventions.steering import SteeringIntervention as SteeringIntervention
    from roadint.model.finetune import add_linear_road as add_linear_road
    from roadint.model.pretrained import load as load
    from roadint.model.pretrained import source_of as source_of
    from roadint.model.road_model import PAPER_DECODING as PAPER_DECODING
    from roadint.model.road_model import RoadModel as RoadModel
    from roadint.recipes.recipe import Recipe as Recipe
    from roadint.rotation.basis import Basis as Basis
    from roadint.rotation.rotation import Rotation as Rotation
    from roadint.training.run import train as train
    from roadint.training.trainer import RoadTrainer as RoadTrainer

# Where each public name lives; loaded at first use, since torch, transformers and pyvene take
# seconds to import.
_HOMES = {
    "Basis": "rotation.basis",
    "Composition": "grammar.composition",
    "DireftIntervention": "interventions.direft",
    "Evaluation": "evaluation.report",
    "LoreftIntervention": "interventions.loreft",
    "Merged": "adapters.merging",
    "PAPER_DECODING": "model.road_model",
    "Partition": "grammar.subspace",
    "Position": "grammar.position",
    "Recipe": "recipes.recipe",
    "Resumed": "engines.transformers.partial",
    "RoadAdapter": "adapters.adapter",
    "RoadError": "errors",
    "RoadInterchange": "interventions.interchange",
    "RoadIntervention": "interventions.road",
    "RoadLinear": "adapters.layer",
    "RoadModel": "model.road_model",
    "RoadTrainer": "training.trainer",
    "Rotation": "rotation.rotation",
    "SeedsEvaluation": "evaluation.report",
    "SteeringIntervention": "interventions.steering",
    "Subspace": "grammar.subspace",
    "add_linear_road": "model.finetune",
    "evaluate": "evaluation.evaluate",
    "load": "model.pretrained",
    "pyvene_config": "interop.pyvene",
    "source_of": "model.pretrained",
    "train": "training.run",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'roadint' has no attribute {name!r}")
    value = getattr(import_module(f"roadint.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
