"""Checks and JSON rules of arguments that many kinds of interventions take."""

import operator
from typing import Any, get_args

from roadint.errors import RoadError, quoted
from roadint.files.rules import either, one_of, whole
from roadint.rotation.basis import BasisKind
from roadint.rotation.rotation import Variant

WIDEST = 1 << 20  # dims of a hidden state
MOST_DIMS = 1 << 24  # dims of any module's output, a vocabulary's included

VARIANT_RULE = one_of(*get_args(Variant))
PAIRING_RULE = either(whole(2, MOST_DIMS), one_of("adjacent", "half"))
BASIS_RULES = {"basis": one_of(*get_args(BasisKind)), "basis_seed": whole(0, 2**32 - 1)}


def index_of(value: Any) -> int | None:
    """An integer of any library as an int; None for anything else."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except (TypeError, RuntimeError, ValueError):
        return None


def layer_index(layer: Any) -> int:
    """Check the index of a layer.

    Raises:
        RoadError: where it is no integer from 0.
    """
    index = index_of(layer)
    if index is None or index < 0:
        raise RoadError(f"layer {quoted(layer)} is no index: expected an integer from 0")
    return index


def component_name(component: Any) -> str:
    """Check the name of a component.

    Raises:
        RoadError: where it is no text, or empty.
    """
    if not isinstance(component, str) or not component:
        raise RoadError(
            f"component {quoted(component)} is no name: expected one such as 'block_output'"
        )
    return component
