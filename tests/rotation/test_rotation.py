"""The formulas, against dense matrices."""

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from roadint.errors import RoadError
from roadint.rotation.basis import Axes, Basis, BasisKind, Frame, Matrix, rotate
from roadint.rotation.kernels.torch import turn
from roadint.rotation.rotation import (
    Rotation,
    Variant,
    canonical,
    check_variant,
    group_size,
    parameter_shape,
    rotation,
)

VARIANTS = ("road_1", "road_2", "road_4")
variants = st.sampled_from(VARIANTS)
seeds = st.integers(0, 2**31)
groups = st.sampled_from([2, 4, 16])
WIDTH = 16


def parameters(variant: str, seed: int, *, orthogonal: bool = False) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = parameter_shape(variant, WIDTH // 2)
    theta = 4 * torch.randn(shape, generator=generator, dtype=torch.float64)
    alpha = torch.randn(shape, generator=generator, dtype=torch.float64)
    return theta, torch.ones_like(alpha) if orthogonal else alpha + 0.1 * alpha.sign()


def dense_by_the_paper(theta: Tensor, alpha: Tensor, variant: str, group: int = 2) -> Tensor:
    """Equation 3, entry by entry, with the pairs that the group size says."""
    matrix = torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
    for block in range(WIDTH // 2):
        k, j = divmod(block, group // 2)
        p, q = k * group + j, k * group + j + group // 2
        t, a = theta[block].expand(2, 2) if variant == "road_1" else theta[block], alpha[block]
        a = a.expand(2, 2) if variant == "road_1" else a
        if variant == "road_2":  # one a row
            t, a = t[:, None].expand(2, 2), a[:, None].expand(2, 2)
        matrix[p, p], matrix[p, q] = a[0, 0] * math.cos(t[0, 0]), -a[0, 1] * math.sin(t[0, 1])
        matrix[q, p], matrix[q, q] = a[1, 0] * math.sin(t[1, 0]), a[1, 1] * math.cos(t[1, 1])
    return matrix


@given(variants, seeds, groups)
def test_direct_and_cross_equal_the_dense_matrix(variant: str, seed: int, group: int) -> None:
    theta, alpha = parameters(variant, seed)
    r = rotation(theta, alpha, variant=variant, group=group)
    dense = dense_by_the_paper(theta, alpha, variant, group)
    h = torch.randn(3, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(r(h), h @ dense.T)
    torch.testing.assert_close(r.direct * h + r.cross * swap(h, group), h @ dense.T)
    torch.testing.assert_close(r.dense(), dense)
    torch.testing.assert_close(
        r.minus_identity(h), h @ (dense - torch.eye(WIDTH, dtype=torch.float64)).T
    )


@given(seeds, groups)
def test_alpha_one_is_orthogonal(seed: int, group: int) -> None:
    theta, alpha = parameters("road_1", seed, orthogonal=True)
    dense = rotation(theta, alpha, variant="road_1", group=group).dense()
    torch.testing.assert_close(dense @ dense.T, torch.eye(WIDTH, dtype=torch.float64))


@given(seeds, st.floats(-2, 2), st.floats(-2, 2))
def test_strengths_add_for_road_1(seed: int, s: float, t: float) -> None:
    theta, alpha = parameters("road_1", seed)
    alpha = (
        alpha.abs()
    )  # R(s)R(t) = R(s + t) holds for the negative too, but only up to the choice of θ + π
    product = rotation(theta, alpha, s, variant="road_1") @ rotation(
        theta, alpha, t, variant="road_1"
    )
    torch.testing.assert_close(
        product.dense(), rotation(theta, alpha, s + t, variant="road_1").dense()
    )


@given(variants, seeds, groups)
def test_inverse_and_product_equal_the_dense_ones(variant: str, seed: int, group: int) -> None:
    a = rotation(*parameters(variant, seed), variant=variant, group=group)
    b = rotation(*parameters(variant, seed + 1), variant=variant, group=group)
    torch.testing.assert_close((a @ b).dense(), a.dense() @ b.dense())
    if torch.linalg.cond(a.dense()) < 1e6:
        torch.testing.assert_close(
            a.inverse().dense(), torch.linalg.inv(a.dense()), rtol=1e-6, atol=1e-6
        )


@given(seeds)
def test_strength_minus_one_is_the_inverse_of_road_1(seed: int) -> None:
    theta, alpha = parameters("road_1", seed)
    torch.testing.assert_close(
        rotation(theta, alpha, -1.0, variant="road_1").dense(),
        rotation(theta, alpha, variant="road_1").inverse().dense(),
    )


@given(variants, seeds)
def test_strength_zero_is_exactly_the_identity_and_one_the_whole(variant: str, seed: int) -> None:
    theta, alpha = parameters(variant, seed)
    h = torch.randn(5, WIDTH, dtype=torch.float64)
    assert torch.equal(rotation(theta, alpha, 0.0, variant=variant)(h), h)
    strengths = torch.tensor([[1.0] * 4 + [0.0] * 4], dtype=torch.float64)
    half = rotation(theta, alpha, strengths, variant=variant)(h)
    assert torch.equal(half[:, 8:], h[:, 8:])
    torch.testing.assert_close(half[:, :8], rotation(theta, alpha, variant=variant)(h)[:, :8])


@pytest.mark.parametrize("variant", VARIANTS)
def test_starts_as_the_identity(variant: str) -> None:
    shape = parameter_shape(variant, WIDTH // 2)
    h = torch.randn(2, WIDTH)
    assert torch.equal(rotation(torch.zeros(shape), torch.ones(shape), variant=variant)(h), h)


@given(variants, seeds)
def test_disjoint_blocks_commute(variant: str, seed: int) -> None:
    theta, alpha = parameters(variant, seed)
    first = torch.tensor([1.0] * 4 + [0.0] * 4, dtype=torch.float64)
    a, b = (
        rotation(theta, alpha, first, variant=variant),
        rotation(theta, alpha, 1 - first, variant=variant),
    )
    torch.testing.assert_close((a @ b).dense(), (b @ a).dense())
    torch.testing.assert_close((a @ b).dense(), rotation(theta, alpha, variant=variant).dense())


@given(variants, seeds)
def test_canonical_form_is_the_same_rotation(variant: str, seed: int) -> None:
    theta, alpha = parameters(variant, seed)
    angle, scale = canonical(theta, alpha)
    assert bool((scale >= 0).all())
    assert bool((angle >= -math.pi).all())
    assert bool((angle < math.pi).all())
    torch.testing.assert_close(
        rotation(angle, scale, variant=variant).dense(),
        dense_by_the_paper(theta, alpha, variant),
        rtol=1e-7,
        atol=1e-9,
    )


def test_blocks_at_strength_zero_get_exactly_no_gradient() -> None:
    theta, alpha = (p.clone().requires_grad_() for p in parameters("road_2", 3))
    strengths = torch.tensor([[1.0] * 4 + [0.0] * 4], dtype=torch.float64)
    rotation(theta, alpha, strengths, variant="road_2")(
        torch.randn(6, WIDTH, dtype=torch.float64)
    ).square().sum().backward()
    assert torch.equal(theta.grad[4:], torch.zeros(4, 2, dtype=torch.float64))
    assert bool((theta.grad[:4] != 0).all())
    assert torch.equal(alpha.grad[4:], torch.zeros(4, 2, dtype=torch.float64))
    assert bool((alpha.grad[:4] != 0).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_output_has_the_dtype_of_the_input_and_float32_precision(dtype: torch.dtype) -> None:
    theta, alpha = (p.float() for p in parameters("road_1", 5))
    r = rotation(theta, alpha, variant="road_1")
    h = torch.randn(4, WIDTH).to(dtype)
    out = r(h)
    assert out.dtype == dtype
    assert torch.equal(out, r(h.float()).to(dtype)) or dtype == torch.float64


def swap(h: Tensor, group: int) -> Tensor:
    """A quarter turn of every pair, `(a, b) → (−b, a)`, as the paper writes it."""
    first, second = h.reshape(*h.shape[:-1], -1, 2, group // 2).unbind(-2)
    return torch.stack((-second, first), dim=-2).flatten(-3)


def test_a_quarter_turn_swaps() -> None:
    h, quarter = torch.arange(8.0), torch.full((4,), 1j)
    assert turn(h, quarter, None).tolist() == [-1, 0, -3, 2, -5, 4, -7, 6]
    assert turn(h, quarter, None, 8).tolist() == [-4, -5, -6, -7, 0, 1, 2, 3]


def dense(frame: Frame, width: int) -> torch.Tensor:
    """Q, column by column."""
    return frame.out(torch.eye(width)).T


@settings(max_examples=10)
@given(variants, seeds, st.sampled_from(["random", "hadamard", "pca"]))
def test_basis_equals_the_dense_formula(variant: str, seed: int, kind: BasisKind) -> None:
    frame = Basis(kind, 7).frame(WIDTH)
    assert frame is not None
    if isinstance(frame, Matrix) and kind == "pca":
        frame.fit(torch.randn(99, WIDTH))
    q = dense(frame, WIDTH)
    torch.testing.assert_close(q @ q.T, torch.eye(WIDTH), atol=1e-5, rtol=0)
    theta, alpha = (p.float() for p in parameters(variant, seed))
    r = rotation(theta, alpha, variant=variant)
    h = torch.randn(3, WIDTH)
    torch.testing.assert_close(frame.into(h), h @ q, rtol=1e-4, atol=1e-4)
    expected = h + h @ (q @ (r.dense() - torch.eye(WIDTH)) @ q.T).T
    torch.testing.assert_close(rotate(h, r, frame), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(rotate(h, rotation(theta, alpha, 0.0, variant=variant), frame), h)


def test_basis_is_told_by_kind_and_seed() -> None:
    assert Basis().frame(8) is None
    for kind in ("random", "hadamard"):
        first, again, other = (dense(Basis(kind, seed).frame(48), 48) for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.allclose(first, other)
    with pytest.raises(RoadError, match="did you mean 'random'"):
        Basis("randm")


@pytest.mark.parametrize("width", [8, 12, 640, 576, 14])
def test_hadamard_spreads_every_dim_over_many(width: int) -> None:
    q = dense(Basis("hadamard", 3).frame(width), width)
    torch.testing.assert_close(q @ q.T, torch.eye(width), atol=1e-5, rtol=0)
    assert float(q.abs().max()) < 0.9


def test_principal_axes_come_largest_first() -> None:
    frame = Basis("pca").frame(6)
    scales = torch.tensor([1.0, 5, 2, 9, 3, 0.1])
    frame.fit(torch.randn(4000, 6) * scales)
    assert frame.into(torch.eye(6)).abs().argmax(0).tolist() == [3, 1, 4, 2, 0, 5]
    far = torch.randn(100, 6) + 1e4 * torch.randn(6)  # in parts, whose mean is far from 0
    frame.fit(iter(far.split([1, 0, 60, 39])))
    _, expected = torch.linalg.eigh(torch.cov(far.double().T))
    torch.testing.assert_close(
        (frame.q.double().T @ expected.flip(-1)).abs(),
        torch.eye(6, dtype=torch.float64),
        atol=1e-4,
        rtol=0,
    )


def test_bad_input_is_named() -> None:
    with pytest.raises(RoadError, match="road_3.*'road_1', 'road_2', 'road_4'"):
        check_variant("road_3")
    with pytest.raises(RoadError, match="width 7 is odd"):
        group_size("adjacent", 7)
    with pytest.raises(RoadError, match="pairing 6 does not fit width 16"):
        group_size(6, 16)
    zero = torch.zeros(4)
    with pytest.raises(RoadError, match="block 0 is singular"):
        rotation(zero, zero, variant="road_1").inverse()
    with pytest.raises(
        RoadError, match="block 1 is singular"
    ):  # its square is 0 in float32, so it can't be divided by
        Rotation(torch.tensor([1 + 0j, 1e-25 + 0j])).inverse()
    with pytest.raises(RoadError, match="pair other dims"):
        Rotation(zero, None, 2) @ Rotation(zero, None, 4)


@pytest.mark.parametrize("group", [2, 4, 8])
@pytest.mark.parametrize("broadcast", [(3, 1), (1, 1), (3, 4), (4,), ()])
def test_the_gradient_of_one_operation_is_that_of_its_parts(
    group: int, broadcast: tuple[int, ...]
) -> None:
    """In double precision against finite differences, with rows that share a rotation and rows that do not."""
    torch.manual_seed(0)
    h = torch.randn(3, 4, 8, dtype=torch.float64, requires_grad=True)
    u, v = (
        torch.randn(*broadcast, 4, dtype=torch.complex128, requires_grad=True) for _ in range(2)
    )
    assert torch.autograd.gradcheck(lambda *inputs: turn(*inputs, group), (h, u, v))
    assert torch.autograd.gradcheck(lambda *inputs: turn(*inputs, None, group), (h, u))
    assert torch.autograd.gradgradcheck(lambda *inputs: turn(*inputs, group), (h, u, v))
    turned = Rotation(u, v, group)
    torch.testing.assert_close(
        turn(h, u, v, group), turned.direct * h + turned.cross * swap(h, group)
    )


@pytest.mark.parametrize("variant", ["road_1", "road_4"])
def test_one_copy_of_the_input_is_kept_for_the_gradient(variant: Variant) -> None:
    h = torch.randn(5, 7, 8, dtype=torch.bfloat16, requires_grad=True)
    theta = torch.randn(parameter_shape(variant, 4), requires_grad=True)
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    turned = rotation(theta, torch.ones_like(theta), variant=variant)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        turned(h).sum().backward()
    large = [tensor for tensor in kept if tensor.numel() >= h.numel()]
    assert [tensor.data_ptr() for tensor in large] == [h.data_ptr()]


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, True, "7"])
def test_seeds_are_checked(seed: Any) -> None:
    with pytest.raises(RoadError, match="basis_seed .* is no seed"):
        Basis("random", seed)


def test_axes_act_only_once_they_are_measured() -> None:
    frame = Basis("pca").frame(6)
    assert isinstance(frame, Axes)
    with pytest.raises(
        RoadError, match="principal axes of basis 'pca' are not measured: expected roadint.train"
    ):
        frame.into(torch.randn(2, 6))
    for hidden in (
        torch.randn(4, 5),
        torch.randn(1, 6),
        torch.full((4, 6), torch.nan),
        [],
        None,
        [torch.randn(3, 6), 5],
        torch.zeros(()),
    ):
        with pytest.raises(RoadError, match="hidden states to measure axes on"):
            frame.fit(hidden)
    assert not copy.deepcopy(frame).measured
    states = torch.randn(3, 4, 6)
    frame.fit(states)
    again, parts = (Basis("pca").frame(6) for _ in range(2))
    again.load_state_dict(frame.state_dict())
    parts.fit([states[0], states[1:].half().float()])
    for each in (again, parts, copy.deepcopy(frame)):
        assert each.measured
        torch.testing.assert_close(
            each.into(states).abs(), frame.into(states).abs(), atol=1e-2, rtol=1e-2
        )
    again.load_state_dict(Basis("pca").frame(6).state_dict())
    assert not again.measured
