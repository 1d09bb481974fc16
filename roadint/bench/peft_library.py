"""PEFT, an optional dependency of benchmarks: its configurations, and putting layers on a model."""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

from torch import nn

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


def oft_config(peft: Any, paths: Sequence[str], size: int) -> Any:
    """OFT with blocks of `size` inputs, on linear layers by path."""
    return peft.OFTConfig(oft_block_size=size, target_modules=list(paths))


def boft_config(peft: Any, paths: Sequence[str], size: int, butterflies: int = 1) -> Any:
    """BOFT with blocks of `size` inputs, on linear layers by path.

    Raises:
        RoadError: for several butterflies where PEFT can't build its CUDA kernel. PEFT would go on
            with one, which is OFT with a scale for every output.
    """
    if butterflies > 1 and not _has_kernel():
        raise RoadError(
            f"BOFT of {butterflies} butterflies: PEFT can't build its CUDA kernel here (nvcc, "
            "ninja); expected 1"
        )
    return peft.BOFTConfig(
        boft_block_size=size, boft_n_butterfly_factor=butterflies, target_modules=list(paths)
    )


def inject(config: Any, model: nn.Module) -> None:
    """Put PEFT's layers on a model, in place, without what PEFT prints of kernels.

    Args:
        config: The configuration of the layers.
        model: A transformers model, whose own parameters stop to require gradients.
    """
    with _silence():
        import_peft().inject_adapter_in_model(config, model)


def _has_kernel() -> bool:
    from peft.tuners.boft.layer import get_fbd_cuda

    with _silence():
        return get_fbd_cuda() is not None  # type: ignore[no-untyped-call]


@contextmanager
def _silence() -> Iterator[None]:
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
