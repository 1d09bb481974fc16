"""The Triton kernels on a GPU, against the torch implementation on the CPU in float64 or as it rounds."""

from typing import Any

import pytest
import torch
from torch import Tensor

from roadint.rotation.kernels import operation, weights
from roadint.rotation.kernels import torch as plain
from roadint.rotation.kernels.operation import turn

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [
    ((6, 64), 2),
    ((6, 5, 64), 2),
    ((6, 5, 96), 6),
    ((6, 130, 1024), 1024),
    ((6, 1, 11008), 2),
]


def numbers(
    shape: tuple[int, ...], dtype: torch.dtype, mirrored: bool, rotations: int = 4
) -> tuple[Tensor, Tensor, Tensor | None]:
    draw = torch.Generator().manual_seed(0)
    h = torch.randn(shape, generator=draw).to(dtype)
    u, v = (
        torch.randn(rotations, shape[-1] // 2, generator=draw, dtype=torch.complex64) for _ in "uv"
    )
    return h, u, v if mirrored else None


def check(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Equal to the rounding of the dtype: sums of gradients are in another order."""
    step = torch.finfo(dtype).eps
    largest = float(expected.abs().max())
    torch.testing.assert_close(found.cpu(), expected, rtol=4 * step, atol=4 * step * largest)


def on(device: torch.device, *tensors: Tensor | None) -> list[Any]:
    return [None if tensor is None else tensor.to(device) for tensor in tensors]


def test_the_kernels_are_there(device: torch.device) -> None:
    pytest.importorskip("triton")
    assert operation.kernel_for(torch.ones(2, 4, device=device)) is not None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "group"), SHAPES, ids=str)
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("index", [None, [0, -1, 3, 1, -1, 0]], ids=["in order", "by index"])
def test_values(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    group: int,
    mirrored: bool,
    index: list[int] | None,
    device: torch.device,
) -> None:
    h, u, v = numbers(shape, dtype, mirrored, 4 if index else 6)
    chosen = None if index is None else torch.tensor(index)
    real = [None if part is None else torch.view_as_real(part) for part in (u, v)]
    expected = plain.turn_indexed(h, *real, chosen, group)
    if index is None:
        u, v = (
            None if part is None else part.reshape(6, *(1,) * (h.ndim - 2), -1) for part in (u, v)
        )
    here = on(device, h, u, v, chosen)
    found = turn(*here[:3], group, here[3])
    assert found.dtype == dtype
    check(found, expected, dtype)
    if index is not None:
        still = torch.tensor(index) < 0
        assert torch.equal(found.cpu()[still], h[still])  # bit for bit
    assert torch.equal(here[0].cpu(), h)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "group"), SHAPES, ids=str)
@pytest.mark.parametrize("mirrored", [False, True])
def test_gradients(
    dtype: torch.dtype, shape: tuple[int, ...], group: int, mirrored: bool, device: torch.device
) -> None:
    h, u, v = numbers(shape, dtype, mirrored)
    index = torch.tensor([0, -1, 3, 1, -1, 0])
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)

    def gradients(where: torch.device) -> list[Tensor]:
        parts = [part.requires_grad_() for part in on(where, h, u, v) if part is not None]
        turned = turn(*parts[:2], parts[2] if mirrored else None, group, index.to(where))
        return list(torch.autograd.grad(turned, parts, weights.to(where)))

    copies = [None if part is None else part.clone() for part in (h, u, v)]
    expected = gradients(torch.device("cpu"))
    h, u, v = copies
    for found, one in zip(gradients(device), expected, strict=True):
        if one.is_complex():
            found, one = torch.view_as_real(found), torch.view_as_real(one)
        check(found, one, dtype)
    assert torch.equal(expected[1][2], torch.zeros_like(expected[1][2]))  # nobody took it


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_captured_graph_takes_another_index(dtype: torch.dtype, device: torch.device) -> None:
    h, u, _ = numbers((6, 5, 64), dtype, mirrored=False)
    here, table, _ = on(device, h, u, None)
    index = torch.zeros(6, dtype=torch.long, device=device)
    with torch.no_grad():
        turn(here, table, None, 2, index)  # compiled outside of the capture
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = turn(here, table, None, 2, index)
        for chosen in ([0, 1, 2, 3, -1, -1], [3, 3, -1, 0, 0, 1]):
            index.copy_(torch.tensor(chosen))
            graph.replay()
            expected = plain.turn_indexed(h, torch.view_as_real(u), None, torch.tensor(chosen), 2)
            check(out, expected, dtype)


@pytest.mark.parametrize(
    "part",
    [
        lambda wide: wide[..., 1:65],
        lambda wide: wide.transpose(0, 1).contiguous().transpose(0, 1)[..., :64],
    ],
    ids=["not aligned", "not contiguous"],
)
def test_parts_of_memory(part: Any, device: torch.device) -> None:
    _, u, v = numbers((6, 5, 64), torch.float32, mirrored=True, rotations=6)
    wide = torch.randn(6, 5, 130, generator=torch.Generator().manual_seed(2))
    shaped = [each.reshape(6, 1, -1) for each in (u, v) if each is not None]
    expected = plain.turn(part(wide), *shaped, 2)
    check(turn(part(wide.to(device)), *on(device, *shaped), 2), expected, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_relaunch_takes_other_memory(dtype: torch.dtype, device: torch.device) -> None:
    """A launch finds its compiled kernel once; later ones have other tensors, aligned or not."""
    h, u, _ = numbers((6, 5, 64), dtype, False)
    index = torch.tensor([0, -1, 3, 1, -1, 0])
    kernels = operation.kernel_for(h.to(device))
    assert kernels is not None
    first = h.to(device)
    launch = kernels.Launch(
        first, torch.view_as_real(u.to(device)), None, index.to(device), 2, first
    )
    memory = torch.empty(8 + 2 * h.numel(), dtype=dtype, device=device)
    for offset in (None, 0, 8, 1):
        other = first if offset is None else memory[offset : offset + h.numel()].view(h.shape)
        other.copy_(h)
        launch(other, other)
        expected = plain.turn_indexed(h, torch.view_as_real(u), None, index, 2)
        check(other, expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("dim", "group"), [(0, 2), (0, 96), (1, 2), (1, 6)])
@pytest.mark.parametrize("mirrored", [False, True])
def test_weights(
    dtype: torch.dtype, dim: int, group: int, mirrored: bool, device: torch.device
) -> None:
    weight, u, v = numbers((96, 96), dtype, mirrored, rotations=1)
    u, v = u[0], None if v is None else v[0]
    found = weight.to(device)
    sums = weights.turn_weight_(found, *on(device, u, v), group, dim)
    expected_sums = weights.turn_weight_(weight, u, v, group, dim)
    check(found, weight, dtype)
    if expected_sums is not None:
        assert sums is not None
        torch.testing.assert_close(sums.cpu(), expected_sums, rtol=5e-2, atol=1e-3)
