"""`roadint.add_linear_road`: RoAd as a finetuning method, in one call."""

from torch import nn
from typing_extensions import Unpack

from roadint.adapters.making import AdapterArguments
from roadint.model.road_model import RoadModel


def add_linear_road(
    model: nn.Module, *, name: str = "road", **arguments: Unpack[AdapterArguments]
) -> RoadModel:
    """Put RoAd on the outputs of a model's linear layers, bias included (paper section 3.2).

    Args:
        model: A transformers model, or a RoadModel that gets one more adapter. Nothing trains
            but the adapter: give `road.trained_parameters()` to an optimizer, or the RoadModel to
            RoadTrainer or transformers' Trainer.
        name: The adapter's name in compositions.
        arguments: targets, "all-linear", "fc1", names or a regular expression; variant "road_1" (a
            number an output), "road_2" (two) or "road_4" (four); layers and exclude, which layers;
            lora_rank, a LoRA beside it; heads, modules that train with it, such as "classifier";
            the rest as in `RoadModel.add_adapter`.

    Returns:
        The RoadModel with the adapter.

    Raises:
        RoadError: where something does not fit.

    Examples:
        >>> road = add_linear_road(model, variant="road_1", targets=["q_proj"])  # doctest: +SKIP
        >>> optimizer = torch.optim.AdamW(road.trained_parameters())  # doctest: +SKIP
    """
    road = model if isinstance(model, RoadModel) else RoadModel(model)
    road.add_adapter(name, **arguments)
    road.model.requires_grad_(False)
    return road
