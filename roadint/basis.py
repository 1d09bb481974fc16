"""The fixed orthogonal basis in which pairs are formed: `h + Q (R − I) Qᵀ h`.

The paper forms pairs of the model's own dimensions (Q = I). A residual stream has a few huge dimensions, so most raw pairs have
little to turn; in a random orthogonal basis every pair carries its share. Q is never stored: its kind and its seed say what it is.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from roadint.errors import RoadError, did_you_mean, listing
from roadint.rotation import Rotation

BasisKind = Literal["identity", "random"]


@dataclass(frozen=True)
class Basis:
    """kind: "identity" (the paper's) or "random" (Haar-distributed, from `seed`). Raises RoadError for another kind."""

    kind: BasisKind = "identity"
    seed: int = 0

    def __post_init__(self) -> None:
        options = get_args(BasisKind)
        if self.kind not in options:
            raise RoadError(
                f"unknown basis {self.kind!r}: expected one of {listing(options)}{did_you_mean(str(self.kind), options)}"
            )

    def matrix(self, width: int) -> Tensor | None:
        """Q, [width, width] float32 with the basis vectors as columns; None for the identity."""
        return None if self.kind == "identity" else _random_orthogonal(width, self.seed)


def rotate(h: Tensor, rotation: Rotation, q: Tensor | None) -> Tensor:
    """`R h`, or `h + Q (R − I) Qᵀ h` in the basis `q`; [..., width] in the dtype of `h`."""
    if q is None:
        return rotation(h)
    coordinates = h.to(q.dtype) @ q
    return (h + rotation.minus_identity(coordinates) @ q.T).to(h.dtype)


@lru_cache(maxsize=8)
def _random_orthogonal(width: int, seed: int) -> Tensor:
    # RandomState's stream is frozen for good, so a checkpoint that stores only the seed means the same Q everywhere.
    gaussian = np.random.RandomState(seed).standard_normal((width, width))
    q, r = np.linalg.qr(gaussian)
    return torch.from_numpy((q * np.sign(np.diag(r))).astype(np.float32))
