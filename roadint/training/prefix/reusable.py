"""Whether prefix reuse is possible on a frozen model, and the error that says why not."""

from torch import nn


class CannotReuseError(Exception):
    """Says why a prefix can't be reused; training then computes it at every step."""


def check_reusable(model: nn.Module) -> None:
    """Check that a model computes the same every time.

    Args:
        model: The base model.

    Raises:
        CannotReuseError: where the base model itself trains, gradient checkpointing computes its
            layers again, or dropout is active.
    """
    training = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if training:
        raise CannotReuseError(
            f"the base model trains ({training[0]} and {len(training) - 1} more)"
        )
    if model.training and getattr(model, "is_gradient_checkpointing", False):
        raise CannotReuseError("gradient checkpointing computes the layers again")
    for name, module in model.named_modules():
        if module.training and any(rate > 0 for rate in _dropout_rates(module)):
            raise CannotReuseError(f"dropout is active in {name}")


def _dropout_rates(module: nn.Module) -> list[float]:
    """Attention has its rate in an attribute whose name contains "drop"."""
    if isinstance(module, nn.Dropout):
        return [module.p]
    named = [value for name, value in vars(module).items() if "drop" in name]
    return [value for value in named if isinstance(value, float)]
