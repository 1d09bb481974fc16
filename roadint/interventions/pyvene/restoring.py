"""Loading saved values together with their arguments, into an intervention that exists.

The arguments are read, checked before anything large is made, and taken over in place.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from roadint.errors import RoadError, first_line, quoted

_MACHINERY = vars(nn.Module()).keys()  # of torch: parameters, buffers, modules, hooks, the mode


def arguments_of(state: Any) -> dict[str, Any]:
    """What `get_extra_state` wrote.

    Raises:
        RoadError: for anything else.
    """
    try:
        arguments = json.loads(bytes(state.tolist()).decode())
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        raise RoadError(
            f"the arguments beside the values can't be read ({first_line(error)}): save them again"
        ) from None
    if not isinstance(arguments, dict):
        raise RoadError(
            f"the arguments beside the values are {quoted(arguments)}: expected a mapping"
        )
    return arguments


def check_shape(name: str, saved: Any, value: Tensor) -> None:
    """Check that a saved value has the shape of the current one.

    Raises:
        RoadError: where it has another.
    """
    if not torch.is_tensor(saved) or saved.shape != value.shape:
        got = tuple(saved.shape) if torch.is_tensor(saved) else quoted(saved)
        raise RoadError(f"{name} is {got}: expected {tuple(value.shape)}")


def check_values_fit(
    kind: type[nn.Module], arguments: Mapping[str, Any], values: Mapping[str, Any]
) -> None:
    """Check, before anything large is made, that values have the shapes that arguments need.

    Args:
        kind: The class of the intervention.
        arguments: The arguments of its __init__.
        values: The values that were saved with them, by name.

    Raises:
        RoadError: where a shape differs, or the arguments are not valid.
    """
    width = arguments.get("embed_dim")
    numbers = sum(value.numel() for value in values.values() if torch.is_tensor(value))
    if isinstance(width, bool) or not isinstance(width, int) or not 0 < width <= 2 * numbers:
        raise RoadError(
            f"embed_dim {quoted(width)} for {numbers} values: "
            "expected the width that they were saved with"
        )
    cheap = {**arguments, **({"basis": "identity"} if "basis" in arguments else {})}
    try:
        with torch.device("meta"):
            shapes = {name: parameter.shape for name, parameter in kind(**cheap).named_parameters()}
    except RoadError:
        raise
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise RoadError(
            f"these values' arguments make no {kind.__name__}: {first_line(error)}"
        ) from error
    for name, shape in shapes.items():
        if name in values and values[name].shape != shape:
            raise RoadError(
                f"{name} is {tuple(values[name].shape)}: "
                f"expected {tuple(shape)}, as its arguments say"
            )


def take_over(module: nn.Module, settled: nn.Module) -> None:
    """Give `module` the configuration of `settled`, which has the same class and no values yet.

    Parameters, hooks and mode of `module` stay; parameters that `settled` lacks are removed.
    """
    for name, value in vars(settled).items():
        if name not in _MACHINERY:
            setattr(module, name, value)
    for name, buffer in settled._buffers.items():  # None too, where one has gone
        module.register_buffer(name, buffer)
    expected = dict(settled.named_parameters())
    for name in [name for name, _ in module.named_parameters() if name not in expected]:
        owner, _, leaf = name.rpartition(".")
        delattr(module.get_submodule(owner), leaf)
