"""`roadint.add_linear_road`: RoAd as a finetuning method, in one call."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from roadint.adapters.targets import ALL_LINEAR, Names
from roadint.model.road_model import RoadModel
from roadint.rotation.rotation import Pairing, Variant


def add_linear_road(
    model: nn.Module,
    *,
    variant: Variant = "road_1",
    targets: Names = ALL_LINEAR,
    exclude: Names = (),
    layers: Iterable[int] | None = None,
    name: str = "road",
    pairing: Pairing = "adjacent",
    lora_rank: int = 0,
    heads: str | Sequence[str] = (),
    **arguments: Any,
) -> RoadModel:
    """Put RoAd on the outputs of a model's linear layers, bias included; returns the RoadModel, in which it is an adapter.

    model: a transformers model, or a RoadModel that gets one adapter more. Nothing of it trains but the adapter:
    `road.trained_parameters()` are for an optimizer, or give `road` to RoadTrainer or transformers' Trainer.
    variant: "road_1" (a number an output), "road_2" (two) or "road_4" (four). targets, exclude: "all-linear", "fc1", names or a
    regular expression; layers: indices; see roadint.adapters.targets.find_targets. lora_rank: a LoRA beside it. heads: modules
    that train with it, such as "classifier". arguments: as in RoadModel.add_adapter. Raises RoadError where something does not fit.
    """
    road = model if isinstance(model, RoadModel) else RoadModel(model)
    road.add_adapter(
        name,
        variant=variant,
        targets=targets,
        exclude=exclude,
        layers=layers,
        pairing=pairing,
        lora_rank=lora_rank,
        heads=heads,
        **arguments,
    )
    road.model.requires_grad_(False)
    return road
