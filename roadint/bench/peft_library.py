"""PEFT, an optional dependency of benchmarks."""

from typing import Any

from roadint.errors import RoadError


def import_peft() -> Any:
    """Import PEFT.

    Returns:
        The module.

    Raises:
        RoadError: where it is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise RoadError(f"PEFT is not installed ({error}): pip install 'roadint[peft]'") from None
    return peft
