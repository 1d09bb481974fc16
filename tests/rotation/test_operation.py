"""The operation `turn`: plain, registered for compiled code, and as Triton kernels in Triton's interpreter."""

import importlib
import re
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor.utils import run_and_get_code

from roadint.rotation.kernels import operation
from roadint.rotation.kernels import torch as plain
from roadint.rotation.kernels.operation import turn, turn_rows

TOKENS, WIDTH, SLOTS = (3, 4), 24, 5


@pytest.fixture(scope="module")
def kernels() -> ModuleType:
    """The kernels, which Triton interprets on the CPU (tests/__init__.py)."""
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("Triton compiles here: tests/gpu compares the kernels")
    return importlib.import_module("roadint.rotation.kernels.triton")


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def rotations(count: int, seed: int = 1) -> Tensor:
    return torch.view_as_complex(numbers(count, WIDTH // 2, 2, seed=seed))


def by_rows(h: Tensor, u: Tensor, v: Tensor | None, index: Tensor | None, group: int) -> Tensor:
    """Every token by itself, through the plain turn of one vector."""
    tokens = h.reshape(-1, WIDTH)
    entries = torch.arange(len(u)) if index is None else index
    slots = entries.repeat_interleave(len(tokens) // len(entries)).tolist()
    rows = [
        token
        if slot < 0
        else plain.turn(token, u[slot], None if v is None else v[slot], group).to(h.dtype)
        for token, slot in zip(tokens, slots, strict=True)
    ]
    return torch.stack(rows).view(h.shape)


INDICES = {
    "a row": torch.tensor([4, -1, 0]),
    "a token": torch.tensor([4, -1, 0, 0, -1, -1, 3, 2, 1, 1, -1, 0]),
    "in order": None,
}
CASES = [
    pytest.param(index, mirrored, group, id=f"{name}, {'v, ' if mirrored else ''}group {group}")
    for name, index in INDICES.items()
    for mirrored in (False, True)
    for group in (2, 8)
]


def made(index: Tensor | None, mirrored: bool) -> tuple[Tensor, Tensor | None]:
    count = TOKENS[0] if index is None else SLOTS
    return rotations(count), rotations(count, 2) if mirrored else None


@pytest.mark.parametrize(("index", "mirrored", "group"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_take_their_rotation(
    index: Tensor | None, mirrored: bool, group: int, dtype: torch.dtype
) -> None:
    h, (u, v) = numbers(*TOKENS, WIDTH, dtype=dtype), made(index, mirrored)
    expected = by_rows(h, u, v, index, group)
    wide = (u[:, None], None if v is None else v[:, None]) if index is None else (u, v)
    turned = turn(h, *wide, group, index)
    assert turned.dtype is dtype
    torch.testing.assert_close(turned, expected)
    if index is not None:
        still = (index < 0).repeat_interleave(12 // len(index)).view(TOKENS)
        assert torch.equal(turned[still], h[still]), "tokens without a rotation"


def gradients_of(function: Any, *values: Tensor) -> tuple[Tensor, ...]:
    leaves = [value.clone().requires_grad_() for value in values]
    output = function(*leaves)
    output.backward(numbers(*output.shape, seed=9))
    return tuple(leaf.grad for leaf in leaves)  # type: ignore[misc]


@pytest.mark.parametrize(("index", "mirrored", "group"), CASES)
def test_gradients_are_those_of_single_tokens(
    index: Tensor | None, mirrored: bool, group: int
) -> None:
    h, (u, v) = numbers(*TOKENS, WIDTH), made(index, mirrored)
    values = (h, u) if v is None else (h, u, v)

    def ours(h: Tensor, u: Tensor, v: Tensor | None = None) -> Tensor:
        if index is None:
            u, v = u[:, None], None if v is None else v[:, None]
        return turn(h, u, v, group, index)

    def theirs(h: Tensor, u: Tensor, v: Tensor | None = None) -> Tensor:
        return by_rows(h, u, v, index, group)

    for one, other in zip(gradients_of(ours, *values), gradients_of(theirs, *values), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("index", [INDICES["a row"], INDICES["in order"]], ids=["index", "order"])
@pytest.mark.parametrize("group", [2, 4])
def test_second_derivatives(index: Tensor | None, group: int) -> None:
    """In double precision against finite differences: for Hessians, influence functions, penalties of gradients."""
    count = TOKENS[0] if index is None else SLOTS
    h = torch.randn(*TOKENS, 4, dtype=torch.float64, requires_grad=True)
    u, v = (torch.randn(count, 2, dtype=torch.complex128, requires_grad=True) for _ in range(2))

    def turned(h: Tensor, u: Tensor, v: Tensor) -> Tensor:
        if index is None:
            u, v = u[:, None], v[:, None]
        return turn(h, u, v, group, index)

    assert torch.autograd.gradgradcheck(turned, (h, u, v))


def test_where_kernels_run_derivatives_are_the_same(
    kernels: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels have no derivatives of their own: forward mode and second derivatives take plain operations."""
    h, u, index = numbers(*TOKENS, WIDTH), rotations(SLOTS), INDICES["a row"]
    tangents = numbers(*TOKENS, WIDTH, seed=5), rotations(SLOTS, 6)

    def of_forward_mode() -> Tensor:
        return torch.func.jvp(lambda h, u: turn(h, u, None, 2, index), (h, u), tangents)[1]

    def of_second_order() -> Tensor:
        leaf = u.clone().requires_grad_()
        turned = turn(h, leaf, None, 2, index).square().sum()
        (gradient,) = torch.autograd.grad(turned, leaf, create_graph=True)
        (second,) = torch.autograd.grad(gradient.real.square().sum(), leaf)
        return second

    expected = of_forward_mode(), of_second_order()
    monkeypatch.setattr(operation, "kernel_for", lambda h: kernels)
    torch.testing.assert_close((of_forward_mode(), of_second_order()), expected)


def test_nan_in_an_unturned_token_reaches_no_gradient() -> None:
    h, u, index = numbers(*TOKENS, WIDTH), rotations(SLOTS), INDICES["a row"]
    h[1] = torch.nan  # its index is −1
    u.requires_grad_()
    turn(h, u, None, 2, index)[0].sum().backward()
    assert u.grad is not None
    assert bool(torch.view_as_real(u.grad).isfinite().all())


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_registered_operation_obeys_torchs_rules(mirrored: bool) -> None:
    """Schema, fake implementation, gradient and ahead-of-time tracing, as torch checks them."""
    u = numbers(SLOTS, WIDTH, 2, seed=1).requires_grad_()
    v = numbers(SLOTS, WIDTH, 2, seed=2).requires_grad_() if mirrored else None
    h = numbers(*TOKENS, WIDTH).requires_grad_()
    for index in (INDICES["a row"], INDICES["a token"]):
        torch.library.opcheck(torch.ops.roadint.turn.default, (h, u, v, index, 5, 2))
        table = (u.detach(), None if v is None else v.detach(), index, 5, 2)
        torch.library.opcheck(torch.ops.roadint.turn_.default, (h.detach(), *table))
        written = h.detach().clone()
        torch.ops.roadint.turn_(written, *table)
        assert torch.equal(written, torch.ops.roadint.turn(h, *table))


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("group", [2, 8])
def test_in_a_graph_a_table_gives_the_same_values(mirrored: bool, group: int) -> None:
    torch._dynamo.reset()
    h, index = numbers(*TOKENS, WIDTH), INDICES["a row"]
    assert index is not None
    table = numbers(SLOTS, WIDTH, 2, seed=1)
    mirror = numbers(SLOTS, WIDTH, 2, seed=2) if mirrored else None
    compiled = torch.compile(
        lambda h: turn_rows(h, table, mirror, index, 5, group), backend="aot_eager", fullgraph=True
    )
    with torch.no_grad():
        u = torch.view_as_complex(table[:, 5 : 5 + WIDTH // 2])
        v = None if mirror is None else torch.view_as_complex(mirror[:, 5 : 5 + WIDTH // 2])
        expected = by_rows(h, u, v, index, group)
        torch.testing.assert_close(compiled(h), expected)
        torch.testing.assert_close(turn_rows(h, table, mirror, index, 5, group), expected)
        half = turn_rows(h.bfloat16(), table, mirror, index, 5, group)
        assert torch.equal(compiled(h.bfloat16())[1], h.bfloat16()[1]), "a row without a rotation"
        torch.testing.assert_close(compiled(h.bfloat16()), half)


def test_a_graph_has_no_kernel_for_the_turn() -> None:
    """Inductor fuses it: linear layers, a gate, a residual sum and a norm take as many kernels with it as without."""
    weights = [numbers(24, 32, seed=1), numbers(24, 32, seed=2), numbers(32, 24, seed=3)]
    table, index = numbers(SLOTS, 60, 2, seed=4), torch.tensor([1, -1, 0])

    def layer(x: Tensor, turned: bool) -> Tensor:
        def turn_at(h: Tensor, first: int) -> Tensor:
            return turn_rows(h, table, None, index, first, 2) if turned else h

        gate, up = turn_at(x @ weights[0], 0), turn_at(x @ weights[1], 16)
        x = x + turn_at((torch.nn.functional.silu(gate) * up) @ weights[2], 32)
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)

    launched = []
    for turned in (False, True):
        torch._dynamo.reset()
        with torch.no_grad():
            _, code = run_and_get_code(torch.compile(layer), numbers(3, 1, 24), turned)
        launched.append(
            len(re.findall(r"^ +(?:cpp_fused\w*\(|extern_kernels)", code[0], re.MULTILINE))
        )
    assert launched == [5, 5], "three products, and what lies between them"


@pytest.mark.parametrize(("index", "mirrored", "group"), CASES)
def test_kernels_equal_plain_pytorch(
    kernels: ModuleType, index: Tensor | None, mirrored: bool, group: int
) -> None:
    h, (u, v) = numbers(*TOKENS, WIDTH), made(index, mirrored)
    real = [None if part is None else torch.view_as_real(part) for part in (u, v)]
    out = torch.empty_like(h)
    kernels.turn(h, *real, index, group, out)
    torch.testing.assert_close(out, plain.turn_indexed(h, *real, index, group))  # type: ignore[arg-type]
    again = h.clone()
    kernels.turn(again, *real, index, group, again)
    assert torch.equal(again, out), "in place"
    gradient = numbers(*TOKENS, WIDTH, seed=9)
    arguments = (gradient, h, *real, index, group)
    both = zip(
        kernels.gradients(*arguments, of_h=True, of_u=True),
        plain.gradients_indexed(*arguments, of_h=True, of_u=True),  # type: ignore[arg-type]
        strict=True,
    )
    for one, other in both:
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("layout", ["v expanded", "blocks apart"])
def test_kernels_read_rotations_of_any_layout(kernels: ModuleType, layout: str) -> None:
    h, index = numbers(*TOKENS, WIDTH), torch.tensor([2, 0, 1])
    u, v = (torch.view_as_real(rotations(SLOTS, seed)) for seed in (1, 2))
    if layout == "v expanded":
        v = v[:1].expand(SLOTS, -1, -1)
    else:
        u = u.transpose(0, 1).contiguous().transpose(0, 1)
    out = torch.empty_like(h)
    kernels.turn(h, u, v, index, 2, out)
    torch.testing.assert_close(out, plain.turn_indexed(h, u, v, index, 2))
    arguments = (numbers(*TOKENS, WIDTH, seed=9), h, u, v, index, 2)
    ours = kernels.gradients(*arguments, of_h=True, of_u=True)
    theirs = plain.gradients_indexed(*arguments, of_h=True, of_u=True)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("group", [2, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("kernels")
def test_a_stream_in_two_parts(mirrored: bool, group: int, dtype: torch.dtype) -> None:
    """What is added to one part turns their sum; blocks and tokens without a turn get nothing."""
    edit = importlib.import_module("roadint.rotation.kernels.triton_edit").edit
    u, v = made(INDICES["a token"], mirrored)
    u[:, 5] = 1
    if v is not None:
        v[:, 5] = 0
    index = INDICES["a token"]
    h, residual = (numbers(12, WIDTH, seed=seed, dtype=dtype) for seed in (3, 4))
    state = h.float() + residual.float()
    expected = (h.float() + by_rows(state, u, v, index, group) - state).to(dtype)
    found = h.clone()
    parts = [None if part is None else torch.view_as_real(part) for part in (u, v)]
    edit(found, residual, *parts, index, group)
    torch.testing.assert_close(
        found, expected, atol=1e-5, rtol=0.008 if dtype is torch.bfloat16 else 1e-5
    )
    assert torch.equal(found[index < 0], h[index < 0])
    still = plain.pairs(h, group)[:, 5], plain.pairs(found, group)[:, 5]
    assert torch.equal(*still)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kernels_work_on_many_tokens_in_half_precision(
    kernels: ModuleType, dtype: torch.dtype
) -> None:
    """More tokens than a program of the backward sums, and a table wider than the layer."""
    h, index = numbers(2, 70, 12, dtype=dtype), torch.tensor([1, 0])
    table = numbers(2, 20, 2, seed=1)[:, 3:9]
    out = torch.empty_like(h)
    kernels.turn(h, table, None, index, 2, out)
    torch.testing.assert_close(out, plain.turn_indexed(h, table, None, index, 2))
    arguments = (numbers(2, 70, 12, seed=9, dtype=dtype), h, table, None, index, 2)
    ours = kernels.gradients(*arguments, of_h=True, of_u=True)
    theirs = plain.gradients_indexed(*arguments, of_h=True, of_u=True)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=1e-3)


def test_where_triton_cannot_run_plain_pytorch_does(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Images without a C compiler have a Triton that can be imported and launches nothing."""
    kernels = pytest.importorskip("roadint.rotation.kernels.triton")

    def fail() -> None:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(kernels, "prepare", fail)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert operation._kernels.__wrapped__(0) is None
    assert "Failed to find C compiler" in caplog.text
