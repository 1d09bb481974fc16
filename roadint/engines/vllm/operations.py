"""The operations inside an engine's graph: hidden states at sites, outputs of linear layers.

They are opaque to compilers, change their first argument in place, and find the tables through the
step that is running: a graph that is compiled, cached or captured holds numbers of sites and
modules, and on a GPU the memory of the tables, nothing else.
"""

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from roadint.engines.vllm.rows.places import Place
from roadint.engines.vllm.rows.served_table import CHUNK, ServedTable
from roadint.errors import RoadError
from roadint.rotation.basis import Frame
from roadint.rotation.kernels.operation import kernel_for, turn_rows
from roadint.rotation.kernels.torch import turn

_SPANS = 8  # that are turned one after another; more are gathered


@dataclass(eq=False)
class ArmedSite:
    """A site whose hidden states are edited.

    Args:
        name: Its name in messages.
        places: Its places with their bases.
    """

    name: str
    places: Sequence[tuple[Place, Frame | None]]
    ran: bool = False


@dataclass(eq=False)
class ArmedLinear:
    """A linear layer whose output is turned.

    Args:
        name: Its path.
        places: Its places.
    """

    name: str
    places: Sequence[Place]
    ran: bool = False


@dataclass(eq=False)
class Armed:
    """What is armed in one model, and the tables that it reads."""

    hidden_table: ServedTable
    linear_table: ServedTable
    sites: list[ArmedSite] = field(default_factory=list)
    linears: list[ArmedLinear] = field(default_factory=list)


class _Running(threading.local):
    armed: Armed | None = None


_running = _Running()


def activate(armed: Armed) -> None:
    """The forward pass that this thread runs next is of this model."""
    _running.armed = armed


def _now() -> Armed:
    armed = _running.armed
    if armed is None:
        raise RuntimeError("roadint: a model with edits ran outside of an engine's step")
    return armed


def edit(
    hidden: Float[Tensor, "tokens width"],
    residual: Float[Tensor, "tokens width"] | None,
    number: int,
) -> None:
    """Edit the hidden states `hidden + residual` at a site, in place in `hidden`.

    Args:
        hidden: What the layer added last, or the hidden states themselves.
        residual: The rest of the residual stream, where the engine adds it later.
        number: The number of the site.
    """
    hidden, residual = _by_token(hidden), None if residual is None else _by_token(residual)
    if torch.compiler.is_compiling():
        torch.ops.roadint.edit(hidden, residual, number)
    else:
        _edit(hidden, residual, number)


def turn_output(output: Float[Tensor, "tokens width"], number: int) -> None:
    """Turn the output of a linear layer, in place.

    Args:
        output: The output.
        number: The number of the layer.
    """
    output = _by_token(output)
    if torch.compiler.is_compiling():
        torch.ops.roadint.turn_output(output, number)
    else:
        _turn_output(output, number)


def _by_token(part: Tensor) -> Float[Tensor, "tokens width"]:
    """The same memory, a token a row; some models give a dim of its own to a batch of one."""
    if part.ndim == 2:
        return part
    if math.prod(part.shape[:-2]) != 1:
        raise RoadError(
            f"a layer gives hidden states of shape {tuple(part.shape)}: expected [tokens, width], "
            "one a token"
        )
    return part.view(-1, part.shape[-1])


def _edit(hidden: Tensor, residual: Tensor | None, number: int) -> None:
    armed = _now()
    site, table = armed.sites[number], armed.hidden_table
    site.ran = True
    if hidden.is_cuda:
        for place, frame in site.places:
            _edit_all(hidden, residual, table, place, frame)
    elif table.busy:
        for place, frame in site.places:
            if table.acts_at(place.number):
                _edit_some(hidden, residual, table, place, frame)


def _edit_all(
    hidden: Tensor, residual: Tensor | None, table: ServedTable, place: Place, frame: Frame | None
) -> None:
    """Edit all tokens by their index, as a graph that is captured has to."""
    index = _index_of(hidden, table)
    if frame is None and residual is not None and _fits_kernel(hidden, residual):
        from roadint.rotation.kernels.triton_edit import edit as edit_in_one_launch

        u = table.u[:, place.blocks]
        v = None if table.v is None else table.v[:, place.blocks]
        edit_in_one_launch(hidden, residual, u, v, index, place.group)
        return
    state = hidden.float() if residual is None else hidden.float() + residual
    pairs = state if frame is None else frame.into(state)
    # A token that stays as it is comes back bit for bit, so that nothing is added to it.
    added = turn_rows(pairs, table.u, table.v, index, place.first, place.group) - pairs
    hidden.copy_(hidden + (added if frame is None else frame.out(added)))


def _index_of(part: Tensor, table: ServedTable) -> Int[Tensor, " tokens"]:
    if len(part) > len(table.index):  # else a kernel would read past its end
        raise RoadError(
            f"a layer gives {len(part)} hidden states: expected at most {len(table.index)}, one a "
            "token of a step"
        )
    return table.index[: len(part)]


def _fits_kernel(hidden: Tensor, residual: Tensor) -> bool:
    return (
        kernel_for(hidden) is not None
        and hidden.is_contiguous()
        and residual.is_contiguous()
        and residual.dtype is hidden.dtype
    )


def _edit_some(
    hidden: Tensor, residual: Tensor | None, table: ServedTable, place: Place, frame: Frame | None
) -> None:
    """Edit the few tokens that the step edits."""
    tokens = table.step_tokens
    last = hidden.index_select(0, tokens).float()
    state = last if residual is None else last + residual.index_select(0, tokens)
    pairs = state if frame is None else frame.into(state)
    u, v = _rows(table, place)
    added = turn(pairs, u - 1, v, place.group)
    added = added if frame is None else frame.out(added)
    hidden.index_copy_(0, tokens, (last + added).to(hidden.dtype))


def _rows(table: ServedTable, place: Place) -> tuple[Tensor, Tensor | None]:
    """The rotations of the tokens of a step at a place; a single one where all take the same."""
    slots = table.step_slots if table.step_slot is None else table.step_slots[:1]
    v = table.v if table.step_mirrors else None
    return _taken(table.u, place, slots), None if v is None else _taken(v, place, slots)


def _taken(rows: Tensor, place: Place, slots: Tensor) -> Tensor:
    return torch.view_as_complex(rows[:, place.blocks].index_select(0, slots))


def _turn_output(output: Tensor, number: int) -> None:
    armed = _now()
    module, table = armed.linears[number], armed.linear_table
    module.ran = True
    if output.is_cuda:
        for place in module.places:
            _turn_all(output, table, place)
    elif table.busy:
        for place in module.places:
            if table.acts_at(place.number):
                _turn_some(output[:, place.offset : place.offset + place.width], table, place)


def _turn_all(output: Tensor, table: ServedTable, place: Place) -> None:
    index = _index_of(output, table)
    if place.width == output.shape[-1] and output.is_contiguous():
        torch.ops.roadint.turn_(output, table.u, table.v, index, place.first, place.group)
        return
    part = output[:, place.offset : place.offset + place.width]
    part.copy_(turn_rows(part.contiguous(), table.u, table.v, index, place.first, place.group))


def _turn_some(part: Float[Tensor, "tokens width"], table: ServedTable, place: Place) -> None:
    """Turn the tokens that the step turns; others are not touched."""
    if table.step_mirrors or place.group != 2 or len(table.step_spans) > _SPANS:
        tokens = table.step_tokens
        u, v = _rows(table, place)
        turned = turn(part.index_select(0, tokens), u, v, place.group)
        part.index_copy_(0, tokens, turned.to(part.dtype))
    else:
        for start, stop, number in table.step_spans:
            slots = table.step_slots[number : number + stop - start]
            _multiply(part[start:stop], table, place, slots)


def _multiply(
    part: Float[Tensor, "tokens width"],
    table: ServedTable,
    place: Place,
    slots: Int[Tensor, " tokens"],
) -> None:
    """Turn neighbouring dims in place, where each block is a complex number, the quickest way."""
    u = torch.view_as_complex(table.u[:, place.blocks])
    wide = part.dtype is torch.float32
    if wide and table.step_slot is not None:
        _pairs(part).mul_(u[table.step_slot])
        return
    most = max(1, CHUNK // place.width)
    for start in range(0, len(part), most):
        chunk = part[start : start + most]
        size = len(chunk), place.width // 2
        if table.step_slot is not None:
            rows = u[table.step_slot]
        else:
            rows = table.scratch_rows[: size[0] * size[1]].view(size)
            torch.index_select(u, 0, slots[start : start + most], out=rows)
        if wide:
            _pairs(chunk).mul_(rows)
        else:
            scratch = table.scratch[: chunk.numel()].view(chunk.shape)
            _pairs(scratch.copy_(chunk)).mul_(rows)
            chunk.copy_(scratch)


def _pairs(part: Float[Tensor, "tokens width"]) -> Tensor:
    return torch.view_as_complex(part.view(len(part), -1, 2))


# torch.library.custom_op costs several times as much at every call.
_library: Any = torch.library.Library("roadint", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define("edit(Tensor(a!) hidden, Tensor? residual, int number) -> ()")
_library.define("turn_output(Tensor(a!) output, int number) -> ()")
for _key in ("CPU", "CUDA"):
    _library.impl("edit", _edit, _key)
    _library.impl("turn_output", _turn_output, _key)
for _name in ("edit", "turn_output"):
    torch.library.register_fake(f"roadint::{_name}", lambda *arguments: None, lib=_library)
