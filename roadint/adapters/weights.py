"""The weights that merging changes: where they are, and which ones it must leave alone."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from roadint.architecture.layers import named_modules
from roadint.errors import RoadError


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """A module's own parameters, to change in place.

    Args:
        module: The module.

    Returns:
        Parameters by name; tensors in the CPU's memory where accelerate copies them from there for
        a call. On the meta device where the values are not in memory.
    """
    return {
        name: _kept(module, name, parameter)
        for name, parameter in module._parameters.items()
        if parameter is not None
    }


def checked_weights(
    model: nn.Module, modules: Mapping[str, nn.Module]
) -> dict[str, dict[str, Tensor]]:
    """The weights of modules; refuses those that merging can't change, or would change elsewhere.

    Args:
        model: The model.
        modules: The modules whose weights are to change, by their paths in the model.

    Returns:
        `weights_of` each module, by path.

    Raises:
        RoadError: for weights that are quantised, computed, or offloaded to disk, and weights that
            two modules share.
    """
    sharing = sharing_of(model)
    weights = {path: weights_of(module) for path, module in modules.items()}
    for path, values in weights.items():
        module = modules[path]
        for name, value in values.items():
            if value.device.type == "meta":
                raise RoadError(
                    f"{path} is offloaded: its weights are not in memory; "
                    "load the model whole, or serve this adapter unmerged"
                )
            if not value.dtype.is_floating_point or value.dtype.itemsize < 2:
                raise RoadError(
                    f"{path} is quantised ({type(module).__name__}, {value.dtype}): rotating would "
                    "quantise it once more, which loses more than an adapter changes; "
                    "serve it unmerged, or load the base model in bfloat16 or float32 to merge"
                )
            others = [other for other in sharing[f"{path}.{name}"] if other != f"{path}.{name}"]
            if others:
                raise RoadError(
                    f"{path} shares its weights with {others[0]}, which would turn too: "
                    "serve this adapter unmerged"
                )
        for name in ("weight", "bias"):
            present = name == "weight" or torch.is_tensor(getattr(module, name, None))
            if present and name not in values:
                raise RoadError(
                    f"the {name} of {path} ({type(module).__name__}) is no parameter, but packed "
                    "or computed from others: merge into a plain layer, or serve this adapter "
                    "unmerged"
                )
    return weights


def sharing_of(model: nn.Module) -> dict[str, list[str]]:
    """For each parameter's name, all names of its values."""
    of_values: dict[tuple[str, int], list[str]] = {}
    names: dict[str, list[str]] = {}
    for path, module in named_modules(model, remove_duplicate=False):
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            kept = _kept(module, name, parameter)
            # Offloading makes a parameter for each module, and copies them from one place.
            key = ("object", id(kept)) if kept is parameter else ("address", kept.data_ptr())
            full = f"{path}.{name}" if path else name
            names[full] = of_values.setdefault(key, [])
            names[full].append(full)
    return names


def _kept(module: nn.Module, name: str, value: Tensor) -> Tensor:
    """A parameter's values, or those that accelerate's hook has in memory to copy for a call."""
    hook = getattr(module, "_hf_hook", None)
    for part in (hook, *getattr(hook, "hooks", ())):
        offloaded = getattr(part, "weights_map", None)
        if offloaded is None or not part.offload:
            continue
        # A map of the module's names, of all names, or of what is in memory beside the disk's.
        everything = getattr(offloaded, "dataset", offloaded)
        in_memory: Mapping[str, Tensor] = getattr(everything, "state_dict", everything)
        value = in_memory.get(getattr(offloaded, "prefix", "") + name, value)
    return value
