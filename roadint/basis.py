"""The fixed orthogonal basis in which pairs are formed: `h + Q (R − I) Qᵀ h`.

The paper forms pairs of the model's own dimensions (Q = I). A residual stream has a few huge dimensions, so most raw pairs have
little to turn; in a random orthogonal basis every pair carries its share. A random Q is never stored: its kind and its seed say
what it is.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from roadint.errors import check_known
from roadint.rotation import Rotation

BasisKind = Literal["identity", "random", "hadamard", "pca"]


@dataclass(frozen=True)
class Basis:
    """A kind of basis, and its seed. Raises RoadError for another kind.

    "identity": the paper's. "random": Haar-distributed. "hadamard": random signs, then a Walsh–Hadamard transform (a width that is
    no power of two mixes its odd factor by a small random matrix): O(d log d) to apply, d signs to hold. "pca": the principal axes
    of the hidden states at the site, the largest first; training measures them on its prompts, and the checkpoint keeps them.
    """

    kind: BasisKind = "identity"
    seed: int = 0

    def __post_init__(self) -> None:
        check_known("basis", self.kind, get_args(BasisKind))

    def frame(self, width: int) -> "Frame | None":
        """What carries hidden states of `width` dims into the basis and back; None for the identity. PCA starts as the identity."""
        if self.kind == "random":
            return Matrix(_random_orthogonal(width, self.seed))
        if self.kind == "pca":
            return Matrix(torch.eye(width))
        return Hadamard(width, self.seed) if self.kind == "hadamard" else None

    def measured(self, frame: "Frame | None") -> dict[str, Tensor]:
        """What a checkpoint has to keep of a frame of this basis: the axes of PCA; the others come from their seed."""
        return {"basis": frame.q} if self.kind == "pca" and isinstance(frame, Matrix) else {}


class Frame(nn.Module):
    """An orthogonal basis: `into` gives the coordinates `Qᵀ h`, `out` is `Q c`; [..., width] float32."""

    def into(self, h: Tensor) -> Tensor:
        """The coordinates of hidden states [..., width]."""
        raise NotImplementedError

    def out(self, coordinates: Tensor) -> Tensor:
        """Back from coordinates [..., width]."""
        raise NotImplementedError


class Matrix(Frame):
    """q [width, width] float32, with the basis vectors as columns."""

    q: Tensor

    def __init__(self, q: Tensor) -> None:
        super().__init__()
        self.register_buffer("q", q, persistent=False)

    def into(self, h: Tensor) -> Tensor:
        """One matrix product."""
        return h.to(self.q.dtype) @ self.q

    def out(self, coordinates: Tensor) -> Tensor:
        """One matrix product."""
        return coordinates @ self.q.T

    def fit(self, hidden: Tensor) -> None:
        """Make it the principal axes of hidden states [tokens, width], the largest variance first."""
        centred = (hidden - hidden.mean(0)).double()
        _, axes = torch.linalg.eigh(centred.T @ centred)
        self.q.copy_(axes.flip(-1))


class Hadamard(Frame):
    """`Qᵀ = (H ⊗ O) D`: random signs D, the Walsh–Hadamard matrix H of the width's power of two, a random O of its odd factor."""

    signs: Tensor
    mixer: Tensor

    def __init__(self, width: int, seed: int) -> None:
        odd = width
        while odd % 2 == 0:
            odd //= 2
        super().__init__()
        signs = np.random.RandomState(seed).choice([-1.0, 1.0], width)
        self.register_buffer("signs", torch.from_numpy(signs.astype(np.float32)), persistent=False)
        self.register_buffer("mixer", _random_orthogonal(odd, seed), persistent=False)

    def into(self, h: Tensor) -> Tensor:
        """Signs, the odd factor, the transform."""
        mixed: Tensor = self._split(h.to(self.signs.dtype) * self.signs) @ self.mixer
        return _walsh(mixed).flatten(-2)

    def out(self, coordinates: Tensor) -> Tensor:
        """The same backwards."""
        mixed: Tensor = _walsh(self._split(coordinates)) @ self.mixer.T
        return mixed.flatten(-2) * self.signs

    def _split(self, h: Tensor) -> Tensor:
        return h.reshape(*h.shape[:-1], -1, len(self.mixer))


def rotate(h: Tensor, rotation: Rotation, frame: Frame | None) -> Tensor:
    """`R h`, or `h + Q (R − I) Qᵀ h` in the basis of `frame`; [..., width] in the dtype of `h`."""
    if frame is None:
        return rotation(h)
    return (h + frame.out(rotation.minus_identity(frame.into(h)))).to(h.dtype)


def _walsh(x: Tensor) -> Tensor:
    """The orthonormal Walsh–Hadamard transform, its own inverse, along the dimension before the last, a power of two."""
    size = x.shape[-2]
    half = 1
    while half < size:
        first, second = x.reshape(*x.shape[:-2], -1, 2, half, x.shape[-1]).unbind(-3)
        x = torch.stack((first + second, first - second), dim=-3).flatten(-4, -2)
        half *= 2
    transformed: Tensor = x / size**0.5
    return transformed


@lru_cache(maxsize=8)
def _random_orthogonal(width: int, seed: int) -> Tensor:
    # RandomState's stream is frozen for good, so a checkpoint that stores only the seed means the same Q everywhere.
    gaussian = np.random.RandomState(seed).standard_normal((width, width))
    q, r = np.linalg.qr(gaussian)
    return torch.from_numpy((q * np.sign(np.diag(r))).astype(np.float32))
