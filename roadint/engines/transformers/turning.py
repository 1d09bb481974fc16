"""The rotation of one target's output, in every pass of a call."""

import re
from typing import Any

import torch
from torch import Tensor

from roadint.engines.adapters import LoweredRotations
from roadint.engines.transformers.passes import Passes
from roadint.errors import RoadError
from roadint.rotation.kernels.operation import kernel_for, turn
from roadint.rotation.kernels.torch import carries_tangents, turn_

_IN_PLACE = (torch.float32, torch.bfloat16, torch.float16)
_EXPERT = re.compile(r"(^|\.)experts?(\.|$)")  # these run on the tokens that are sent to them
_SCRATCH = 1 << 20  # numbers that are worked on at a time: they stay in the processor's cache


class Scratch:
    """Memory to work in, one tensor for every width, shared by the layers of a call.

    It has the shape of the current outputs and is reused: allocating costs as much as the work.
    """

    def __init__(self) -> None:
        self._rows: torch.Size | None = None
        self._of_width: dict[tuple[int, torch.device], Tensor] = {}

    def of(self, output: Tensor) -> Tensor | None:
        """Float32 memory for an output, or for as many of its rows as are worked on at a time.

        None where the output is float32 itself.
        """
        if output.dtype is torch.float32:
            return None
        if output.shape[:-1] != self._rows:
            self._rows, self._of_width = output.shape[:-1], {}
        key = output.shape[-1], output.device
        if key not in self._of_width:
            rows = max(1, _SCRATCH * len(output) // output.numel())
            self._of_width[key] = torch.empty_like(output[:rows], dtype=torch.float32)
        return self._of_width[key]


class Turn:
    """The rotation of one target's output.

    It runs in the loop of a decode, so what depends on a shape is computed once for that shape.

    Args:
        rotations: The rotations of all targets of a layout.
        target: The index of the target.
        rows: How many rows the call has.
        scratch: Memory to work in.
    """

    def __init__(
        self, rotations: LoweredRotations, target: int, rows: int, scratch: Scratch
    ) -> None:
        self._path, self._group = rotations.layout.paths[target], rotations.groups[target]
        self._rotations, self._target = rotations, target
        self._rows, self._scratch = rows, scratch
        self._shape: torch.Size | None = None
        self._launch: Any = None
        self._entries: Tensor | None = None

    def __call__(self, output: Tensor, passes: Passes) -> Tensor:
        """Rotate the layer's output [rows, …, width], in place where no gradient needs it."""
        if output.shape != self._shape:
            self._prepare(output, passes)
        needs_graph = torch.is_grad_enabled() or carries_tangents()
        if self._in_place and not needs_graph and output.is_contiguous():
            if self._launch is not None:
                self._launch(output, output)
                return output
            return turn_(output, self._u, self._memory)
        return turn(output, self._u, self._v, self._group, self._entries)

    def _prepare(self, output: Tensor, passes: Passes) -> None:
        """Expand u and v for outputs of this shape."""
        here = self._rotations.on(output.device)
        (u, v), index = here.parts[self._target], here.index
        copies = 1
        if index is not None or len(u) > 1:  # else all rows have one rotation
            copies = copies_in(output, passes, self._rows, self._path)
        self._shape = None if u.requires_grad else output.shape  # a graph can be used once
        self._launch = self._entries = self._memory = None
        kernels = kernel_for(output)
        if kernels is None:
            self._u = _beside(u, index, output, copies)
            self._v = None if v is None else _beside(v, index, output, copies)
            self._in_place = v is None and self._group == 2 and output.dtype in _IN_PLACE
            self._memory = self._scratch.of(output) if self._in_place else None
            return
        # The kernel looks rotations up, by an index or in order: nothing is copied for a row.
        self._in_place = not u.requires_grad
        if self._in_place:
            real = (None if part is None else torch.view_as_real(part) for part in (u, v))
            self._launch = kernels.Launch(output, *real, index, self._group, output)
        in_order = index is None and len(u) in (1, len(output))
        if in_order:
            self._u = _beside(u, None, output, 1)
            self._v = None if v is None else _beside(v, None, output, 1)
        else:
            self._u, self._v = u, v
            self._entries = torch.arange(len(u), device=u.device) if index is None else index


def _beside(vector: Tensor, index: Tensor | None, output: Tensor, copies: int) -> Tensor:
    if index is not None:
        vector = vector.index_select(0, index)
    if copies > 1 and len(vector) > 1:
        vector = vector.repeat_interleave(copies, dim=0)
    between = (1,) * (output.ndim - 2)
    return vector.reshape(len(vector), *between, vector.shape[-1])


def copies_in(output: Tensor, passes: Passes, rows: int, path: str) -> int:
    """How often an output has every row of the call.

    Beams and returned sequences repeat rows, and some layers return [rows · columns, width].

    Raises:
        RoadError: where its rows are not those of the call, but an image's or an expert's tokens.
    """
    copies, left = divmod(passes.rows, rows)
    if not left and copies and not _EXPERT.search(path):
        # Multi-head latent attention has an axis of one between rows and columns.
        columns = passes.columns
        if output.ndim > 3:
            columns = output.shape[2 if output.shape[1] == 1 else 1]
        if output.shape[0] == passes.rows and columns == passes.columns:
            return copies
        if output.ndim == 2 and output.shape[0] == passes.rows * passes.columns:
            return copies * passes.columns
    raise RoadError(
        f"{path} ran on {output.shape[0]} rows in a batch of {passes.rows}: its rows can't be told "
        "apart; leave it out of the targets, or give all rows one composition"
    )
