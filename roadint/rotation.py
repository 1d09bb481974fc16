"""The mathematics of RoAd: pairs of dimensions, rotated and scaled (arXiv 2409.00119, section 3.2).

A hidden vector `h` of even width `d` is cut into `d/2` blocks; block `i` holds a pair of its dimensions and has the 2×2 matrix

    R_i = [ α11·cos θ11   −α12·sin θ12 ]
          [ α21·sin θ21    α22·cos θ22 ]                  z = R h,  R = diag(R_0 … R_{d/2−1})      (equation 3)

No matrix is ever built: with `swap(h) = (−h1, h0, −h3, h2, …)`, whatever the variant, strength or composition,

    z = direct ⊙ h + cross ⊙ swap(h)                                                                 (equation 4)
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from roadint.errors import RoadError, check_known
from roadint.fused import swap, turn

Variant = Literal["road_1", "road_2", "road_4"]
Pairing = Literal["adjacent", "half"] | int

# What each block owns of θ and of α (table 1): one number, one a row, or one an entry (row, column).
_SHAPE_OF_A_BLOCK: dict[str, tuple[int, ...]] = {"road_1": (), "road_2": (2,), "road_4": (2, 2)}


def check_variant(variant: str) -> Variant:
    """Return `variant`; raise RoadError where it is none of road_1, road_2 and road_4."""
    check_known("variant", variant, get_args(Variant))
    return variant  # type: ignore[return-value]


def parameter_shape(variant: Variant, blocks: int) -> tuple[int, ...]:
    """The shape of θ, and of α: (blocks,), (blocks, 2) or (blocks, 2, 2)."""
    return (blocks, *_SHAPE_OF_A_BLOCK[variant])


def group_size(pairing: Pairing, width: int) -> int:
    """The size g of the groups in which channel `kg + j` is paired with `kg + j + g/2` (j < g/2).

    "adjacent" is g = 2 (the paper's pairs, dimensions 2i and 2i + 1), "half" is g = width (as in rotary position
    embeddings), any other even divisor of the width is PEFT's `group_size`. Raises RoadError for the rest.
    """
    if width < 2 or width % 2:
        raise RoadError(f"width {width} is odd or too small: rotations need pairs of dimensions, so an even width")
    if pairing == "adjacent":
        return 2
    if pairing == "half":
        return width
    if isinstance(pairing, int) and pairing >= 2 and pairing % 2 == 0 and width % pairing == 0:
        return pairing
    raise RoadError(f"pairing {pairing!r} does not fit width {width}: expected 'adjacent', 'half' or an even divisor of the width")


@dataclass(frozen=True)
class Rotation:
    """All blocks of one site, for one or many rows: `z = direct ⊙ h + cross ⊙ swap(h)`.

    direct, cross: [..., width], in the order of the hidden dimensions; leading dimensions (rows) broadcast against `h`.
    group: the group size of the pairing, 2 for the paper's adjacent pairs.
    """

    direct: Tensor
    cross: Tensor
    group: int = 2

    def __call__(self, h: Tensor) -> Tensor:
        """Rotate `h` ([..., width]); computed in float32 at least, returned in the dtype of `h`."""
        return turn(h, self.direct, self.cross, self.group).to(h.dtype)

    def minus_identity(self, h: Tensor) -> Tensor:
        """`(R − I) h`: what the rotation adds to `h`. Exactly zero where a block is the identity."""
        return turn(h, self.direct - 1, self.cross, self.group)

    def __matmul__(self, first: "Rotation") -> "Rotation":
        """The product `self · first` (first acts first), block by block."""
        if self.group != first.group:
            raise RoadError(f"rotations with group sizes {self.group} and {first.group} pair other dims: no product")
        a, b, c, d = self._entries()
        e, f, g, h = first._entries()
        return _from_entries(a * e + b * g, a * f + b * h, c * e + d * g, c * f + d * h, self.group)

    def as_interchange(self) -> "Rotation":
        """The paper's other form, `h + R (h − Rᵀ h)` (section 4.3): `R + I − R Rᵀ`.

        It is the same as R only while R is orthogonal (α = 1). For RoAd1 it is `R h + (1 − α²) h`.
        """
        a, b, c, d = self._entries()
        off = a * c + b * d
        return _from_entries(a + 1 - a * a - b * b, b - off, c - off, d + 1 - c * c - d * d, self.group)

    def inverse(self) -> "Rotation":
        """The closed-form inverse of every 2×2 block. Raises RoadError where a block is singular."""
        a, b, c, d = self._entries()
        determinant = a * d - b * c
        if bool((determinant == 0).any()):
            block = int((determinant == 0).flatten().nonzero()[0]) % determinant.shape[-1]
            raise RoadError(f"block {block} is singular (its scale is zero): no inverse exists")
        return _from_entries(d / determinant, -b / determinant, -c / determinant, a / determinant, self.group)

    def dense(self) -> Tensor:
        """The matrix R, [..., width, width], for tests and inspection: `z = R @ h`."""
        identity = torch.eye(self.direct.shape[-1], dtype=self.direct.dtype, device=self.direct.device)
        columns = self.direct[..., None, :] * identity + self.cross[..., None, :] * swap(identity, self.group)
        return columns.transpose(-1, -2)

    def row(self, index: Tensor) -> "Rotation":
        """The rotation of each selected row: direct and cross gathered along their first dimension."""
        return Rotation(self.direct[index], self.cross[index], self.group)

    def _entries(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(R11, R12, R21, R22), each [..., blocks]."""
        a, d = _pairs(self.direct, self.group)
        minus_b, c = _pairs(self.cross, self.group)
        return a, -minus_b, c, d


def rotation(theta: Tensor, alpha: Tensor, strength: Tensor | float = 1.0, *, variant: Variant, group: int = 2) -> Rotation:
    """The Rotation of the parameters θ (radians) and α at a strength s: θ → s·θ, α → α^s (entry by entry).

    theta, alpha: [blocks], [blocks, 2] or [blocks, 2, 2], as `parameter_shape` says, or one of these for each leading row.
    strength: a number, or [..., blocks] for one rotation per leading row; 0 is exactly the identity. For RoAd1 strengths
    add (`R(s + t) = R(s) R(t)`), and −1 is the inverse. A negative α counts as |α| with θ + π, so every strength is real.
    """
    angle, scale = _positive(theta, alpha)
    s = torch.as_tensor(strength, dtype=theta.dtype, device=theta.device)
    if s.ndim:
        s = s.reshape(*s.shape, *(1,) * len(_SHAPE_OF_A_BLOCK[variant]))
    size, angle = scale**s, angle * s
    cosine, sine = size * angle.cos(), size * angle.sin()
    if variant == "road_1":
        return _from_entries(cosine, -sine, sine, cosine, group)
    if variant == "road_2":
        return _from_entries(cosine[..., 0], -sine[..., 0], sine[..., 1], cosine[..., 1], group)
    return _from_entries(cosine[..., 0, 0], -sine[..., 0, 1], sine[..., 1, 0], cosine[..., 1, 1], group)


def canonical(theta: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """The same rotation at strength 1 with α ≥ 0 and θ in [−π, π): a negative α is |α| with θ + π."""
    angle, scale = _positive(theta, alpha)
    return (angle + math.pi).remainder(2 * math.pi) - math.pi, scale


def _positive(theta: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where(alpha < 0, theta + math.pi, theta), alpha.abs()


def _pairs(vector: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """The first and the second member of each pair, each [..., blocks]."""
    first, second = vector.reshape(*vector.shape[:-1], -1, 2, group // 2).unbind(-2)
    return first.flatten(-2), second.flatten(-2)


def _from_entries(r11: Tensor, r12: Tensor, r21: Tensor, r22: Tensor, group: int) -> Rotation:
    def in_place(first: Tensor, second: Tensor) -> Tensor:
        halves = [x.reshape(*x.shape[:-1], -1, group // 2) for x in (first, second)]
        return torch.stack(halves, dim=-2).flatten(-3)

    return Rotation(in_place(r11, r22), in_place(-r12, r21), group)
