"""The Triton kernel of merging, in Triton's interpreter: it does what the PyTorch implementation does."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from roadint.rotation.kernels import weights

pytest.importorskip("triton")
if torch.cuda.is_available():
    pytest.skip("Triton compiles here: tests/gpu compares the kernels", allow_module_level=True)

from roadint.rotation.kernels import triton_weights as kernel


def rotation(blocks: int, has_v: bool) -> tuple[Tensor, Tensor | None]:
    torch.manual_seed(blocks)
    u, v = torch.randn(2, blocks, dtype=torch.complex64)
    return u, v if has_v else None


@pytest.mark.parametrize(
    ("dtype", "has_v"),
    [(torch.float32, True), (torch.bfloat16, False), (torch.float16, True)],
)
@pytest.mark.parametrize(
    ("shape", "dim", "group"),
    [
        *[((12, 2053), 0, group) for group in (2, 6, 12)],
        *[((18, 540), 1, group) for group in (2, 6, 540)],
        *[((1, 300), 1, group) for group in (2, 300)],
    ],
)
def test_as_in_pytorch(
    shape: tuple[int, int], dim: int, group: int, dtype: torch.dtype, has_v: bool
) -> None:
    """More than one tile along both dims; the bits that differ are those of one rounding."""
    u, v = rotation(shape[dim] // 2, has_v)
    before = torch.randn(shape).to(dtype)
    turned, expected = before.clone(), before.clone()
    sums = kernel.turn_weight_(turned, u, v, group, dim)
    expected_sums = weights.turn_weight_(expected, u, v, group, dim)
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(turned, expected, rtol=unit, atol=4e-6)
    assert (sums is None) == (expected_sums is None) == (dtype is torch.float32)
    if sums is not None:
        exact = before.float()
        weights.turn_weight_(exact, u, v, group, dim)
        changes = [exact - before.float(), exact - turned.float()]
        wanted = torch.stack([change.double().square().sum() for change in changes])
        torch.testing.assert_close(sums.double(), wanted, rtol=1e-3, atol=0)


def test_only_the_view_of_a_larger_tensor_changes() -> None:
    u, v = rotation(4, has_v=True)
    whole = torch.randn(7, 30)
    before = whole.clone()
    part = whole[1:6, 3:27:3]
    kernel.turn_weight_(part, u, v, 2, 1)
    expected = before[1:6, 3:27:3].clone()
    weights.turn_weight_(expected, u, v, 2, 1)
    torch.testing.assert_close(part, expected)
    inside = torch.zeros_like(whole, dtype=torch.bool)
    inside[1:6, 3:27:3] = True
    assert torch.equal(whole[~inside], before[~inside])


@pytest.mark.parametrize("dim", [0, 1])
def test_matrices_of_more_than_two_to_the_31_numbers(dim: int, tmp_path: Path) -> None:
    """Matrix rows that lie 2³⁰ numbers apart, in a file with holes."""
    stride = 1 << 30
    file = str(tmp_path / "matrix")
    whole = torch.from_file(file, shared=True, size=3 * stride + 4, dtype=torch.bfloat16)
    matrix = whole.as_strided((4, 4), (stride, 1))
    u, _ = rotation(2, has_v=False)
    matrix.copy_(torch.arange(16).view(4, 4))
    expected = matrix.clone()
    kernel.turn_weight_(matrix, u, None, 2, dim)
    weights.turn_weight_(expected, u, None, 2, dim)
    torch.testing.assert_close(matrix, expected)
