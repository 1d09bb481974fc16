"""The fixed orthogonal basis in which pairs are formed: `h + Q (R − I) Qᵀ h`.

The paper forms pairs of the model's own dimensions (Q = I). A residual stream has a few huge dimensions, so most raw pairs have
little to turn; in a random orthogonal basis every pair carries its share. A random Q is never stored: its kind and its seed say
what it is.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from roadint.errors import RoadError, check_known, quoted
from roadint.rotation.rotation import Rotation

BasisKind = Literal["identity", "random", "hadamard", "pca"]


@dataclass(frozen=True)
class Basis:
    """A kind of basis, and its seed. Raises RoadError for another kind.

    "identity": the paper's. "random": Haar-distributed. "hadamard": random signs, then a Walsh–Hadamard transform (a width that is
    no power of two mixes its odd factor by a small random matrix): O(d log d) to apply, d signs to hold. "pca": the principal axes
    of the hidden states at the site, the largest first; training measures them on its prompts, `fit_basis` on any hidden states,
    and the checkpoint keeps them. Until then an intervention in them does not act: RoadError.
    """

    kind: BasisKind = "identity"
    seed: int = 0

    def __post_init__(self) -> None:
        check_known("basis", self.kind, get_args(BasisKind))
        if (
            isinstance(self.seed, bool)
            or not isinstance(self.seed, int)
            or not 0 <= self.seed < 2**32
        ):
            raise RoadError(
                f"basis_seed {quoted(self.seed)} is no seed: expected an integer from 0 to {2**32 - 1}"
            )

    def frame(self, width: int) -> "Frame | None":
        """What carries hidden states of `width` dims into the basis and back; None for the identity."""
        if self.kind == "random":
            return Matrix(_random_orthogonal(width, self.seed))
        if self.kind == "pca":
            return Axes(width)
        return Hadamard(width, self.seed) if self.kind == "hadamard" else None

    def measured(self, frame: "Frame | None") -> dict[str, Tensor]:
        """What a checkpoint has to keep of a frame of this basis: the axes of PCA; the others come from their seed."""
        return {"basis": frame.q} if self.kind == "pca" and isinstance(frame, Axes) else {}


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

    def __init__(self, q: Tensor, *, persistent: bool = False) -> None:
        super().__init__()
        self.register_buffer("q", q, persistent=persistent)

    def into(self, h: Tensor) -> Tensor:
        """One matrix product."""
        return h.to(self.q.dtype) @ self.q

    def out(self, coordinates: Tensor) -> Tensor:
        """One matrix product."""
        return coordinates @ self.q.T


class Axes(Matrix):
    """The principal axes of hidden states; q is not a number until they are measured, or loaded, and part of the state_dict."""

    def __init__(self, width: int) -> None:
        super().__init__(torch.full((width, width), math.nan), persistent=True)
        self._measured = False

    @property
    def measured(self) -> bool:
        """Whether the axes are known. Waits for the device only as long as they are not."""
        self._measured = self._measured or bool(self.q.isfinite().all())
        return self._measured

    @torch.no_grad()
    def fit(self, hidden: Tensor | Sequence[Tensor]) -> None:
        """Make it the principal axes of hidden states, the largest variance first.

        hidden: [tokens, width], more dims before the last or not; or a sequence of such. Raises RoadError for other widths, for
        fewer than two tokens, and for numbers that are not finite.
        """
        width = len(self.q)
        parts = (
            [hidden]
            if torch.is_tensor(hidden)
            else list(hidden)
            if isinstance(hidden, (list, tuple))
            else []
        )
        if not parts or not all(
            torch.is_tensor(each) and each.ndim and each.shape[-1] == width for each in parts
        ):
            raise RoadError(
                f"no hidden states to measure axes on: expected a tensor [tokens, {width}], or a list of such"
            )
        states = torch.cat([each.reshape(-1, width).double().to(parts[0].device) for each in parts])
        if len(states) < 2 or not bool(states.isfinite().all()):
            raise RoadError(
                f"{len(states)} hidden states to measure axes on: expected at least 2, all of them finite"
            )
        centred = states - states.mean(0)
        _, axes = torch.linalg.eigh(centred.T @ centred)
        self.q.copy_(axes.flip(-1))

    def into(self, h: Tensor) -> Tensor:
        """One matrix product. Raises RoadError where the axes are not known."""
        if not self.measured:
            raise RoadError(
                "the principal axes of basis 'pca' are not measured: expected roadint.train, which measures them where it edits, "
                "fit_basis(hidden states) of the intervention, or a checkpoint"
            )
        return super().into(h)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        self._measured = False  # until `measured` has looked at what is loaded
        super()._load_from_state_dict(state_dict, prefix, *args)


def fit(frame: Frame | None, hidden: Tensor | Sequence[Tensor]) -> None:
    """Measure the axes of a frame. Raises RoadError where it has none to measure."""
    if not isinstance(frame, Axes):
        raise RoadError(
            "no basis to measure: expected an intervention with basis='pca' whose width is known"
        )
    frame.fit(hidden)


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
