"""The fixed orthogonal basis in which pairs are formed: `h + Q (R − I) Qᵀ h`.

The paper forms pairs of the model's own dims (Q = I). A residual stream has a few huge dims, so
most pairs of raw dims are small; in a random orthogonal basis all pairs have similar sizes. A
random Q is never stored: its kind and its seed define it.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from roadint.errors import RoadError, check_known, quoted
from roadint.rotation.rotation import Rotation

BasisKind = Literal["identity", "random", "hadamard", "pca"]
HiddenStates = Float[Tensor, "*tokens width"] | Iterable[Float[Tensor, "*tokens width"]]


@dataclass(frozen=True)
class Basis:
    """A kind of basis, and its seed.

    Args:
        kind: "identity" is the paper's. "random" is Haar-distributed. "hadamard" is random signs,
            then a Walsh–Hadamard transform (with a small random matrix for the odd factor of a
            width that is no power of two): two small products. "pca" is the principal axes of the
            hidden states at the site, the largest first: training measures them on its prompts,
            `fit_basis` on any hidden states, and checkpoints keep them. Before that, an
            intervention in them raises RoadError.
        seed: From 0 to 2³² − 1, for "random" and "hadamard".

    Raises:
        RoadError: for an unknown kind, or a seed out of range.

    Examples:
        >>> Basis().frame(8) is None
        True
        >>> frame = Basis("hadamard", seed=7).frame(8)
        >>> h = torch.arange(8.0)
        >>> torch.allclose(frame.out(frame.into(h)), h, atol=1e-5)
        True
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
                f"basis_seed {quoted(self.seed)} is no seed: "
                f"expected an integer from 0 to {2**32 - 1}"
            )

    def frame(self, width: int) -> "Frame | None":
        """The basis for hidden states of a width.

        Args:
            width: The width, in dims.

        Returns:
            The frame, which transforms hidden states into the basis and back; None for the
            identity.
        """
        match self.kind:
            case "random":
                return Matrix(_random_orthogonal(width, self.seed))
            case "hadamard":
                return Hadamard(width, self.seed)
            case "pca":
                return Axes(width)
        return None

    def measured(self, frame: "Frame | None") -> dict[str, Tensor]:
        """The tensors that a checkpoint has to keep of a frame.

        Args:
            frame: What `frame` returned.

        Returns:
            The axes of "pca" as "basis"; nothing for other kinds, which their seeds define.
        """
        return {"basis": frame.q} if self.kind == "pca" and isinstance(frame, Axes) else {}


class Frame(nn.Module):
    """An orthogonal basis Q for hidden states of one width, in float32."""

    def into(self, h: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        """The coordinates `Qᵀ h` of hidden states."""
        raise NotImplementedError

    def out(self, coordinates: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        """The hidden states `Q c` of coordinates."""
        raise NotImplementedError


class Matrix(Frame):
    """A basis that is held as a matrix.

    Args:
        q: The basis vectors as columns, float32.
        persistent: Whether the matrix is part of the state_dict.
    """

    q: Float[Tensor, "width width"]

    def __init__(self, q: Float[Tensor, "width width"], *, persistent: bool = False) -> None:
        super().__init__()
        self.register_buffer("q", q, persistent=persistent)

    def into(self, h: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        """One matrix product."""
        return h.to(self.q.dtype) @ self.q

    def out(self, coordinates: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        """One matrix product."""
        return coordinates @ self.q.T


class Axes(Matrix):
    """The principal axes of hidden states, part of the state_dict; NaN until measured or loaded.

    Args:
        width: The width of the hidden states, in dims.
    """

    def __init__(self, width: int) -> None:
        super().__init__(torch.full((width, width), math.nan, dtype=torch.float32), persistent=True)
        self._measured = False

    @property
    def measured(self) -> bool:
        """Whether the axes are known; waits for the device only as long as they are not."""
        self._measured = self._measured or bool(self.q.isfinite().all())
        return self._measured

    @torch.no_grad()
    def fit(self, hidden: HiddenStates) -> None:
        """Measure the axes, the largest variance first.

        Args:
            hidden: Hidden states of any number of tokens, or an iterable of such tensors, of
                which one is held at a time.

        Raises:
            RoadError: for another width, fewer than two tokens, or numbers that are not finite.
        """
        width = len(self.q)
        sums = _Sums()
        one = torch.is_tensor(hidden) or not isinstance(hidden, Iterable)
        for part in [hidden] if one else hidden:
            if not (torch.is_tensor(part) and part.ndim and part.shape[-1] == width):
                raise RoadError(
                    f"{quoted(part)}: no hidden states to measure axes on; "
                    f"expected a tensor [tokens, {width}], or a list of such"
                )
            sums.add(part.reshape(-1, width))
        covariance = sums.covariance()
        if covariance is None:
            raise RoadError(
                f"{sums.count} hidden states to measure axes on: "
                "expected at least 2, all of them finite"
            )
        _, axes = torch.linalg.eigh(covariance)
        self.q.copy_(axes.flip(-1))

    def into(self, h: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        """The coordinates of hidden states along the axes.

        Args:
            h: The hidden states.

        Returns:
            The coordinates, float32.

        Raises:
            RoadError: where the axes are not measured.
        """
        if not self.measured:
            raise RoadError(
                "the principal axes of basis 'pca' are not measured: expected roadint.train, which "
                "measures them where it edits, fit_basis(hidden states) of the intervention, "
                "or a checkpoint"
            )
        return super().into(h)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        self._measured = False  # until `measured` has checked what is loaded
        super()._load_from_state_dict(state_dict, prefix, *args)


class _Sums:
    """What the covariance of hidden states needs, in double precision, part by part.

    The first part's mean is taken from all of them, so that nothing cancels.
    """

    def __init__(self) -> None:
        self.count = 0
        self.shift: Any = None
        self.total: Any = 0.0
        self.products: Any = 0.0

    def add(self, states: Float[Tensor, "tokens width"]) -> None:
        """Add some hidden states."""
        if not len(states):
            return
        if states.device.type == "mps":  # which has no double precision
            states = states.cpu()
        states = states.double()
        if self.shift is None:
            self.shift = states.mean(0)
        states = states.to(self.shift.device) - self.shift
        self.count += len(states)
        self.total += states.sum(0)
        self.products += states.T @ states

    def covariance(self) -> Float[Tensor, "width width"] | None:
        """The covariance, times the count; None of fewer than two, or if one is not finite."""
        if self.count < 2 or not bool(self.products.isfinite().all()):
            return None
        whole: Tensor = self.products - torch.outer(self.total, self.total) / self.count
        return whole


class Hadamard(Frame):
    """`Qᵀ = (H ⊗ O) D`, which takes two products with small matrices.

    D has random signs, H is the Walsh–Hadamard matrix of the width's power of two, and O a random
    orthogonal matrix of its odd factor.

    Args:
        width: The width of the hidden states, in dims.
        seed: The seed of the signs and of O.
    """

    signs: Float[Tensor, " width"]
    left: Float[Tensor, "a a"]
    right: Float[Tensor, "b b"]

    def __init__(self, width: int, seed: int) -> None:
        odd = width
        while odd % 2 == 0:
            odd //= 2
        super().__init__()
        signs = np.random.RandomState(seed).choice([-1.0, 1.0], width).astype(np.float32)
        self.register_buffer("signs", torch.from_numpy(signs), persistent=False)
        # H of ab is (H of a) ⊗ (H of b): two products with small matrices, where butterflies would
        # read and write everything log₂(ab) times.
        depth = (width // odd).bit_length() - 1
        of_right = max(0, (depth - odd.bit_length() + 1) // 2)
        left, right = _walsh(1 << depth - of_right), _walsh(1 << of_right)
        right = torch.kron(right, _random_orthogonal(odd, seed))
        self.register_buffer("left", left / len(left) ** 0.5, persistent=False)
        self.register_buffer("right", right / (1 << of_right) ** 0.5, persistent=False)

    def into(self, h: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        """Apply signs, the odd factor and the transform."""
        signed = self._split(h.to(self.signs.dtype) * self.signs)
        return (self.left @ (signed @ self.right)).flatten(-2)

    def out(self, coordinates: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        """Apply the same in reverse."""
        mixed: Tensor = self.left @ (self._split(coordinates) @ self.right.T)
        return mixed.flatten(-2) * self.signs

    def _split(self, h: Tensor) -> Tensor:
        return h.reshape(*h.shape[:-1], len(self.left), len(self.right))


def rotate(
    h: Float[Tensor, "*rows width"], rotation: Rotation, frame: Frame | None
) -> Float[Tensor, "*rows width"]:
    """Rotate hidden states in a basis.

    Args:
        h: The hidden states.
        rotation: The rotation of the pairs in the basis.
        frame: The basis; None for the identity.

    Returns:
        `h + Q (R − I) Qᵀ h`, in the dtype of `h`.
    """
    if frame is None:
        return rotation(h)
    return (h + frame.out(rotation.minus_identity(frame.into(h)))).to(h.dtype)


def _walsh(size: int) -> Float[Tensor, "size size"]:
    """The Walsh–Hadamard matrix of a power of 2, with entries 1 and −1."""
    matrix = torch.ones(1, 1, dtype=torch.float32, device="cpu")
    while len(matrix) < size:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    return matrix


@lru_cache(maxsize=8)
def _random_orthogonal(width: int, seed: int) -> Tensor:
    # RandomState's stream never changes, so the seed in a checkpoint means the same Q everywhere.
    gaussian = np.random.RandomState(seed).standard_normal((width, width))
    q, r = np.linalg.qr(gaussian)
    return torch.from_numpy((q * np.sign(np.diag(r))).astype(np.float32))
