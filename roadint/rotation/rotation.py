"""The mathematics of RoAd: pairs of dimensions, rotated and scaled (arXiv 2409.00119, section 3.2).

A hidden vector `h` of even width `d` is cut into `d/2` blocks; block `i` holds a pair of its dimensions and has the 2×2 matrix

    R_i = [ α11·cos θ11   −α12·sin θ12 ]
          [ α21·sin θ21    α22·cos θ22 ]                  z = R h,  R = diag(R_0 … R_{d/2−1})      (equation 3)

No matrix is ever built: with `swap(h) = (−h1, h0, −h3, h2, …)`, whatever the variant, strength or composition,

    z = direct ⊙ h + cross ⊙ swap(h)                                                                 (equation 4)

or, with each pair of h as a complex number, `z = u·h + v·h̄`: two vectors of complex numbers, of which RoAd1 needs one alone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from roadint.errors import RoadError, check_known, quoted
from roadint.rotation.kernels.torch import dims, turn

LARGEST_SCALE = 1e6  # of a block; what it multiplies stays far inside float32

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
        raise RoadError(
            f"width {width} is odd or too small: rotations need pairs of dimensions, so an even width"
        )
    if isinstance(pairing, str) and pairing in ("adjacent", "half"):
        return 2 if pairing == "adjacent" else width
    if (
        isinstance(pairing, int)
        and not isinstance(pairing, bool)
        and pairing >= 2
        and pairing % 2 == 0
        and width % pairing == 0
    ):
        return pairing
    raise RoadError(
        f"pairing {quoted(pairing)} does not fit width {width}: expected 'adjacent', 'half' or an even divisor of it"
    )


@dataclass(frozen=True)
class Rotation:
    """All blocks of one site, for one or many rows: `z = u·h + v·h̄` with the pairs of h as complex numbers.

    u, v: complex [..., blocks]; leading dimensions (rows) broadcast against those of `h`. v is None where it is zero everywhere,
    as in RoAd1, where `u = α e^{iθ}`. They are the paper's two vectors, `direct` and `cross`, in the form that is quickest.
    group: the group size of the pairing, 2 for the paper's adjacent pairs.
    """

    u: Tensor
    v: Tensor | None = None
    group: int = 2

    def __call__(self, h: Tensor) -> Tensor:
        """Rotate `h` ([..., width]); computed in float32 at least, returned in the dtype of `h`."""
        return turn(h, self.u, self.v, self.group).to(h.dtype)

    def minus_identity(self, h: Tensor) -> Tensor:
        """`(R − I) h`: what the rotation adds to `h`. Exactly zero where a block is the identity."""
        return turn(h, self.u - 1, self.v, self.group)

    def __matmul__(self, first: "Rotation") -> "Rotation":
        """The product `self · first` (first acts first), block by block."""
        if self.group != first.group:
            raise RoadError(
                f"rotations with group sizes {self.group} and {first.group} pair other dims: no product"
            )
        if self.v is None and first.v is None:
            return Rotation(self.u * first.u, None, self.group)
        v, w = (torch.zeros_like(each.u) if each.v is None else each.v for each in (self, first))
        return Rotation(
            self.u * first.u + v * w.conj(), self.u * w + v * first.u.conj(), self.group
        )

    def as_interchange(self) -> "Rotation":
        """The paper's other form, `h + R (h − Rᵀ h)` (section 4.3): `R + I − R Rᵀ`.

        It is the same as R only while R is orthogonal (α = 1). For RoAd1 it is `R h + (1 − α²) h`.
        """
        square = self.u.abs().square()
        if self.v is None:
            return Rotation(self.u + 1 - square, None, self.group)
        return Rotation(
            self.u + 1 - square - self.v.abs().square(), self.v - 2 * self.u * self.v, self.group
        )

    def inverse(self) -> "Rotation":
        """The closed-form inverse of every 2×2 block. Raises RoadError where a block is singular."""
        determinant = self.determinant()
        return Rotation(
            self.u.conj() / determinant,
            None if self.v is None else -self.v / determinant,
            self.group,
        )

    def determinant(self) -> Tensor:
        """[..., blocks], of every block, to divide by. Raises RoadError where a block is singular."""
        found = self.u.abs().square() - (0 if self.v is None else self.v.abs().square())
        if bool((found == 0).any()):
            block = int((found == 0).flatten().nonzero()[0]) % found.shape[-1]
            raise RoadError(f"block {block} is singular (its scale is zero): no inverse exists")
        return found

    def entries(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """R11, R12, R21 and R22 of every block, [..., blocks] each."""
        u, v = self.u, self.v
        if v is None:
            return u.real, -u.imag, u.imag, u.real
        return u.real + v.real, v.imag - u.imag, u.imag + v.imag, u.real - v.real

    @property
    def direct(self) -> Tensor:
        """[..., width], the first vector of `z = direct ⊙ h + cross ⊙ swap(h)` (equation 4): R11 and R22 of each block."""
        r11, _, _, r22 = self.entries()
        return dims(torch.complex(r11, r22), self.group)

    @property
    def cross(self) -> Tensor:
        """[..., width], the second vector: −R12 and R21 of each block."""
        _, r12, r21, _ = self.entries()
        return dims(torch.complex(-r12, r21), self.group)

    def dense(self) -> Tensor:
        """The matrix R, [..., width, width], for tests and inspection: `z = R @ h`."""
        identity = torch.eye(2 * self.u.shape[-1], dtype=self.u.real.dtype, device=self.u.device)
        return self.row((..., None, slice(None)))(identity).transpose(-1, -2)

    def row(self, index: Any) -> "Rotation":
        """The rotation of each selected row: u and v indexed along their leading dimensions."""
        return Rotation(self.u[index], None if self.v is None else self.v[index], self.group)


def rotation(
    theta: Tensor,
    alpha: Tensor,
    strength: Tensor | float = 1.0,
    *,
    variant: Variant,
    group: int = 2,
) -> Rotation:
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
    if variant == "road_1":
        return Rotation(torch.polar(size, angle), None, group)
    cosine, sine = size * angle.cos(), size * angle.sin()
    if variant == "road_2":
        return _from_entries(cosine[..., 0], -sine[..., 0], sine[..., 1], cosine[..., 1], group)
    return _from_entries(
        cosine[..., 0, 0], -sine[..., 0, 1], sine[..., 1, 0], cosine[..., 1, 1], group
    )


def check_scale(alpha: Tensor, strengths: Tensor | float, whose: Callable[[int], str]) -> None:
    """Raises RoadError where `|α|^s` is not finite or above LARGEST_SCALE: a strength at which there is no rotation to compute.

    alpha: as for `rotation`. strengths: a number or [..., blocks]. whose: what a block belongs to, for the message.
    Waits for the device, so it is for strengths outside of 0 … 1 alone, at which a scale can't pass both 1 and α.
    """
    alpha = alpha.detach().abs()
    s = torch.as_tensor(strengths, dtype=alpha.dtype, device=alpha.device)
    s = s.reshape(*s.shape, *(1,) * (alpha.ndim - 1)) if s.ndim else s
    scales = (alpha**s).reshape(-1, *alpha.shape)
    beyond = ~(scales <= LARGEST_SCALE)
    if bool(beyond.any()):
        place = tuple(beyond.nonzero()[0].tolist())
        scale, strength = float(alpha[place[1:]]), float(s.expand(scales.shape)[place])
        why = "has no inverse" if scale == 0 else f"becomes {float(scales[place]):g}"
        raise RoadError(
            f"a scale α of {scale or 'zero'} {why} at strength {strength:g}, in block {place[1]} of {whose(place[1])}: "
            f"expected a strength at which it is at most {LARGEST_SCALE:,.0f}"
        )


def canonical(theta: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """The same rotation at strength 1 with α ≥ 0 and θ in [−π, π): a negative α is |α| with θ + π."""
    angle, scale = _positive(theta, alpha)
    return (angle + math.pi).remainder(2 * math.pi) - math.pi, scale


def _positive(theta: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where(alpha < 0, theta + math.pi, theta), alpha.abs()


def _from_entries(r11: Tensor, r12: Tensor, r21: Tensor, r22: Tensor, group: int) -> Rotation:
    return Rotation(
        torch.complex(r11 + r22, r21 - r12) / 2, torch.complex(r11 - r22, r12 + r21) / 2, group
    )
