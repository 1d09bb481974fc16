"""The algebra of RoAd: pairs of dims, rotated and scaled (arXiv 2409.00119, section 3.2).

A hidden vector `h` of even width `d` is cut into `d/2` blocks. Block `i` holds a pair of its dims
and has the 2×2 matrix

    R_i = [ α11·cos θ11   −α12·sin θ12 ]
          [ α21·sin θ21    α22·cos θ22 ]       z = R h,  R = diag(R_0 … R_{d/2−1})    (equation 3)

No matrix is ever built. With `swap(h) = (−h1, h0, −h3, h2, …)`, whatever the variant, the strength
or the composition,

    z = direct ⊙ h + cross ⊙ swap(h)                                                  (equation 4)

or, with pairs of h as complex numbers, `z = u·h + v·h̄`: two vectors of complex numbers, of which
RoAd1 needs only u.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from roadint.errors import RoadError, check_known, quoted
from roadint.rotation.kernels.operation import turn
from roadint.rotation.kernels.torch import dims, entries

LARGEST_SCALE = 1e6  # of a block: products with it stay far inside float32

Variant = Literal["road_1", "road_2", "road_4"]
Pairing = Literal["adjacent", "half"] | int

# What each block has of θ and of α (table 1): one number, one a matrix row, or one an entry.
_SHAPE_OF_A_BLOCK: dict[str, tuple[int, ...]] = {"road_1": (), "road_2": (2,), "road_4": (2, 2)}


def check_variant(variant: str) -> Variant:
    """Check the name of a variant.

    Args:
        variant: "road_1", "road_2" or "road_4" (table 1 of the paper).

    Returns:
        The variant.

    Raises:
        RoadError: for anything else.
    """
    check_known("variant", variant, get_args(Variant))
    return variant  # type: ignore[return-value]


def parameter_shape(variant: Variant, blocks: int) -> tuple[int, ...]:
    """The shape of θ, and of α.

    Args:
        variant: The variant of RoAd.
        blocks: The number of blocks.

    Returns:
        (blocks,) for road_1, (blocks, 2) for road_2, one a matrix row, and (blocks, 2, 2) for
        road_4, one an entry.

    Examples:
        >>> parameter_shape("road_2", 16)
        (16, 2)
    """
    return (blocks, *_SHAPE_OF_A_BLOCK[variant])


def group_size(pairing: Pairing, width: int) -> int:
    """The size g of the groups in which dim `kg + j` is paired with dim `kg + j + g/2` (j < g/2).

    Args:
        pairing: "adjacent" for g = 2, the paper's pairs of dims 2i and 2i + 1; "half" for g =
            width, as in rotary position embeddings; or an even divisor of the width, PEFT's
            `group_size`.
        width: The width of the hidden states, in dims.

    Returns:
        The group size.

    Raises:
        RoadError: for an odd width, or a pairing that does not fit it.

    Examples:
        >>> [group_size(pairing, 64) for pairing in ("adjacent", "half", 16)]
        [2, 64, 16]
    """
    if width < 2 or width % 2:
        raise RoadError(
            f"width {width} is odd or too small: rotations need pairs of dimensions, "
            "so an even width"
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
        f"pairing {quoted(pairing)} does not fit width {width}: "
        "expected 'adjacent', 'half' or an even divisor of it"
    )


@dataclass(frozen=True)
class Rotation:
    """All blocks of one site, for one row or many: `z = u·h + v·h̄` of the pairs of h.

    `u` and `v` are the paper's two vectors, `direct` and `cross`, in the form that is quickest.
    `@` is the product, block by block: in `a @ b`, b acts first.

    Args:
        u: Complex; leading dimensions broadcast against those of the hidden states. For RoAd1 it is
            `α e^{iθ}`.
        v: As `u`; None where it is zero everywhere, as in RoAd1.
        group: The group size of the pairing, 2 for the paper's adjacent pairs.

    Examples:
        A quarter turn of the first pair, and nothing for the second:

        >>> r = Rotation(torch.tensor([1j, 1]))
        >>> r(torch.tensor([1.0, 0.0, 3.0, 4.0]))
        tensor([0., 1., 3., 4.])
        >>> half_turn = r @ r
        >>> half_turn(torch.tensor([1.0, 0.0, 3.0, 4.0]))
        tensor([-1.,  0.,  3.,  4.])
        >>> r.inverse()(r(torch.tensor([1.0, 0.0, 3.0, 4.0])))
        tensor([1., 0., 3., 4.])
    """

    u: Complex[Tensor, "*rows blocks"]
    v: Complex[Tensor, "*rows blocks"] | None = None
    group: int = 2

    def __call__(self, h: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        """Rotate hidden states.

        Args:
            h: The hidden states.

        Returns:
            `R h`, computed in float32 at least, in the dtype of `h`.
        """
        return turn(h, self.u, self.v, self.group)

    def minus_identity(self, h: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        """What the rotation adds to hidden states.

        Args:
            h: The hidden states.

        Returns:
            `(R − I) h`, in float32 at least; exactly zero where a block is the identity.
        """
        return turn(h, self.u - 1, self.v, self.group)

    def __matmul__(self, first: "Rotation") -> "Rotation":
        if self.group != first.group:
            raise RoadError(
                f"rotations with group sizes {self.group} and {first.group} pair other dims: "
                "no product"
            )
        if self.v is None and first.v is None:
            return Rotation(self.u * first.u, None, self.group)
        v, w = (
            torch.zeros_like(factor.u) if factor.v is None else factor.v for factor in (self, first)
        )
        return Rotation(
            self.u * first.u + v * w.conj(), self.u * w + v * first.u.conj(), self.group
        )

    def as_interchange(self) -> "Rotation":
        """The paper's other form, `h + R (h − Rᵀ h)` (section 4.3).

        Returns:
            `R + I − R Rᵀ`. It is R only while R is orthogonal (α = 1); for RoAd1 it gives
            `R h + (1 − α²) h`.
        """
        square = self.u.abs().square()
        if self.v is None:
            return Rotation(self.u + 1 - square, None, self.group)
        return Rotation(
            self.u + 1 - square - self.v.abs().square(), self.v - 2 * self.u * self.v, self.group
        )

    def inverse(self) -> "Rotation":
        """The closed-form inverse of every 2×2 block.

        Returns:
            The rotation that undoes this one.

        Raises:
            RoadError: where a block is singular.
        """
        determinant = self.determinant()
        return Rotation(
            self.u.conj() / determinant,
            None if self.v is None else -self.v / determinant,
            self.group,
        )

    def determinant(self) -> Float[Tensor, "*rows blocks"]:
        """The determinant of every block, to divide by.

        Returns:
            `|u|² − |v|²`.

        Raises:
            RoadError: where a block is singular.
        """
        determinant = self.u.abs().square()
        if self.v is not None:
            determinant = determinant - self.v.abs().square()
        if bool((determinant == 0).any()):
            block = int((determinant == 0).flatten().nonzero()[0]) % determinant.shape[-1]
            raise RoadError(f"block {block} is singular (its scale is zero): no inverse exists")
        return determinant

    def entries(
        self,
    ) -> tuple[
        Float[Tensor, "*rows blocks"],
        Float[Tensor, "*rows blocks"],
        Float[Tensor, "*rows blocks"],
        Float[Tensor, "*rows blocks"],
    ]:
        """R11, R12, R21 and R22 of every block."""
        return entries(self.u, self.v)

    @property
    def direct(self) -> Float[Tensor, "*rows width"]:
        """The first vector of equation 4: R11 and R22 of each block."""
        r11, _, _, r22 = self.entries()
        return dims(torch.complex(r11, r22), self.group)

    @property
    def cross(self) -> Float[Tensor, "*rows width"]:
        """The second vector of equation 4: −R12 and R21 of each block."""
        _, r12, r21, _ = self.entries()
        return dims(torch.complex(-r12, r21), self.group)

    def dense(self) -> Float[Tensor, "*rows width width"]:
        """The matrix R, for tests and inspection: `z = R @ h`.

        Examples:
            >>> Rotation(torch.tensor([2 + 1j])).dense()
            tensor([[ 2., -1.],
                    [ 1.,  2.]])
        """
        identity = torch.eye(2 * self.u.shape[-1], dtype=self.u.real.dtype, device=self.u.device)
        return self.row((..., None, slice(None)))(identity).transpose(-1, -2)

    def row(self, index: Any) -> "Rotation":
        """The rotation of some rows.

        Args:
            index: An index of the leading dimensions of `u` and `v`.

        Returns:
            The rotation with the indexed `u` and `v`.
        """
        return Rotation(self.u[index], None if self.v is None else self.v[index], self.group)


def stacked(rotations: Sequence[Rotation]) -> Rotation:
    """Rotations of adjacent pairs as the rows of one, which has v where one of them has.

    Args:
        rotations: At least one, all of one shape.
    """
    v = None
    if any(rotation.v is not None for rotation in rotations):
        v = torch.stack([torch.zeros_like(r.u) if r.v is None else r.v for r in rotations])
    return Rotation(torch.stack([rotation.u for rotation in rotations]), v)


def rotation(
    theta: Float[Tensor, "*rows_and_blocks"],
    alpha: Float[Tensor, "*rows_and_blocks"],
    strength: Float[Tensor, "*rows blocks"] | float = 1.0,
    *,
    variant: Variant,
    group: int = 2,
) -> Rotation:
    """The rotation of the parameters θ and α at a strength s: θ → s·θ, α → α^s, entry by entry.

    A negative α counts as |α| with θ + π, so every strength gives real numbers. For RoAd1 strengths
    add, `R(s + t) = R(s) R(t)`, and −1 is the inverse.

    Args:
        theta: Angles in radians, of `parameter_shape`, with leading dimensions or not.
        alpha: Scales, of the same shape.
        strength: One number, or one a block, with leading dimensions for the rows; 0 is exactly the
            identity.
        variant: The variant of RoAd.
        group: The group size of the pairing.

    Returns:
        The rotation.

    Examples:
        >>> theta, alpha = torch.tensor([math.pi / 2]), torch.tensor([4.0])
        >>> rotation(theta, alpha, variant="road_1")(torch.tensor([1.0, 1.0])).round(decimals=4)
        tensor([-4.,  4.])
        >>> rotation(theta, alpha, 0.5, variant="road_1")(torch.tensor([1.0, 0.0]))
        tensor([1.4142, 1.4142])
        >>> rotation(theta, alpha, 0.0, variant="road_1")(torch.tensor([1.0, 0.0]))
        tensor([1., 0.])
    """
    angle, scale = positive(theta, alpha)
    # A number is written on the device: a copy from the host would wait for a GPU.
    s = strength.to(theta) if torch.is_tensor(strength) else theta.new_full((), strength)
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


def check_scale(
    alpha: Float[Tensor, " blocks *entries"],
    strengths: Float[Tensor, "*rows blocks"] | float,
    whose: Callable[[int], str],
) -> None:
    """Check that `|α|^s` is finite and at most LARGEST_SCALE.

    It waits for the device. It is not needed for strengths from 0 to 1, at which a scale lies
    between 1 and α.

    Args:
        alpha: Scales, of `parameter_shape`.
        strengths: As for `rotation`.
        whose: Block → the owner of the block, for the message.

    Raises:
        RoadError: for a strength at which a scale is too large or not finite.
    """
    alpha = alpha.detach().abs()
    s = torch.as_tensor(strengths, dtype=alpha.dtype, device=alpha.device)
    s = s.reshape(*s.shape, *(1,) * (alpha.ndim - 1)) if s.ndim else s
    scales = (alpha**s).reshape(-1, *alpha.shape)
    beyond = ~(scales <= LARGEST_SCALE)
    if bool(beyond.any()):
        index = tuple(beyond.nonzero()[0].tolist())
        scale, strength = float(alpha[index[1:]]), float(s.expand(scales.shape)[index])
        why = "has no inverse" if scale == 0 else f"becomes {float(scales[index]):g}"
        raise RoadError(
            f"a scale α of {scale or 'zero'} {why} at strength {strength:g}, "
            f"in block {index[1]} of {whose(index[1])}: "
            f"expected a strength at which it is at most {LARGEST_SCALE:,.0f}"
        )


def canonical(
    theta: Float[Tensor, " blocks *entries"], alpha: Float[Tensor, " blocks *entries"]
) -> tuple[Float[Tensor, " blocks *entries"], Float[Tensor, " blocks *entries"]]:
    """The same rotation at strength 1, but not at others, with α ≥ 0 and θ in [−π, π).

    Args:
        theta: Angles in radians.
        alpha: Scales; a negative one is |α| with θ + π.

    Returns:
        The angles and the scales.

    Examples:
        >>> canonical(torch.tensor([0.0]), torch.tensor([-2.0]))
        (tensor([-3.1416]), tensor([2.]))
    """
    angle, scale = positive(theta, alpha)
    return (angle + math.pi).remainder(2 * math.pi) - math.pi, scale


def positive(theta: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """The same rotation at every strength with α ≥ 0: a negative α is |α| with θ + π."""
    return torch.where(alpha < 0, theta + math.pi, theta), alpha.abs()


def _from_entries(r11: Tensor, r12: Tensor, r21: Tensor, r22: Tensor, group: int) -> Rotation:
    return Rotation(
        torch.complex(r11 + r22, r21 - r12) / 2, torch.complex(r11 - r22, r12 + r21) / 2, group
    )
