"""The memory that autograd keeps for a layer with a frozen weight, in `roadint bench linear`."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from roadint.adapters.layer import RoadLinear
from roadint.bench.linear_systems import RANK, SingleLinear
from roadint.bench.machine import default_device
from roadint.bench.peft_library import import_peft
from roadint.bench.shapes import noise


def memory_cases(width: int) -> list[dict[str, Any]]:
    """Measure what a layer keeps for its gradient, in float32 and bfloat16.

    Args:
        width: The width of the layer.

    Returns:
        Cases whose "copies_kept" counts copies of the layer's output; weights are not counted.
    """
    peft = import_peft()
    configs = {
        "PEFT RoAd": peft.RoadConfig(group_size=2, target_modules=["layer"]),
        f"PEFT LoRA r={RANK}": peft.LoraConfig(r=RANK, target_modules=["layer"]),
    }
    cases = []
    device = default_device()
    for dtype in (torch.float32, torch.bfloat16):
        base = SingleLinear(width, dtype, device)
        systems: dict[str, nn.Module] = {"base": base, "roadint": RoadLinear(base.layer)}
        for name, config in configs.items():
            systems[name] = peft.get_peft_model(SingleLinear(width, dtype, device), config)
        x = noise(8, 128, width, like=base.layer.weight, seed=1)
        about = {"width": width, "dtype": str(dtype).removeprefix("torch.")}
        for name, module in systems.items():
            copies = round(_copies_kept(module, x), 2)
            cases.append({"name": "memory", "system": name, "copies_kept": copies, **about})
    return cases


def _copies_kept(module: nn.Module, x: Float[Tensor, "rows tokens width"]) -> float:
    weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    saving = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with torch.enable_grad(), saving:
        output = module(x.requires_grad_())
    return sum(kept.values()) / int(output.numel() * output.element_size())
