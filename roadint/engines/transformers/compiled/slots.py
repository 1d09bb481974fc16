"""The rotations that a compiled graph reads: memory that stays where it is."""

import torch
from jaxtyping import Complex, Int
from torch import Tensor

from roadint.rotation.rotation import Rotation


class Slots:
    """Rotations in slots, and the slot that every token takes.

    A graph, a CUDA graph too, reads both anew whenever it runs: other numbers in them are other
    edits, and no new graph.

    Args:
        blocks: How many blocks a slot has.
        count: How many slots there are.
        mirrored: Whether rotations may have a v.
        device: Where they are.

    Attributes:
        u: Real and imaginary parts, [slots, blocks, 2].
        v: As `u`; None without.
        index: The slot of every token or, where it is shorter, of as many tokens after another as
            there are for an entry; −1 for tokens that stay as they are.
    """

    @torch.inference_mode(False)
    def __init__(self, blocks: int, count: int, *, mirrored: bool, device: torch.device) -> None:
        self.u = torch.zeros(count, blocks, 2, device=device, dtype=torch.float32)
        self.u[..., 0] = 1
        self.v = torch.zeros_like(self.u) if mirrored else None
        self.index: Int[Tensor, " entries"] = torch.full((1,), -1, device=device)
        self._nowhere = True
        for memory in (self.u, self.v):
            if memory is not None:
                torch._dynamo.mark_static_address(memory)

    def __len__(self) -> int:
        return len(self.u)

    def with_room(self, count: int, *, mirrored: bool) -> "Slots":
        """These slots, or new ones where more are needed."""
        mirrored |= self.v is not None
        if count <= len(self) and mirrored == (self.v is not None):
            return self
        count = max(len(self), 1 << (count - 1).bit_length())
        return Slots(self.u.shape[1], count, mirrored=mirrored, device=self.u.device)

    @torch.no_grad()
    def put(self, rotation: Rotation, blocks: Int[Tensor, " blocks"] | slice) -> None:
        """Write rotations into the first slots.

        Args:
            rotation: One a slot.
            blocks: The blocks that are written.
        """
        _write(self.u, rotation.u, blocks)
        if self.v is not None:
            v = torch.zeros_like(rotation.u) if rotation.v is None else rotation.v
            _write(self.v, v, blocks)

    @torch.no_grad()
    def clear(self, blocks: Int[Tensor, " blocks"] | slice) -> None:
        """Make blocks the identity in every slot."""
        self.u[:, blocks] = 0
        self.u[:, blocks, 0] = 1
        if self.v is not None:
            self.v[:, blocks] = 0

    @torch.no_grad()
    def point(self, index: Int[Tensor, " entries"]) -> None:
        """Set the slot of every token."""
        self._nowhere = False
        if self.index.shape == index.shape:
            self.index.copy_(index)
        else:
            with torch.inference_mode(False):
                self.index = index.to(self.u.device).clone()

    def point_nowhere(self, entries: int) -> None:
        """Have no token take a slot."""
        if not self._nowhere or len(self.index) != entries:
            self.point(torch.full((entries,), -1, device=self.u.device))
            self._nowhere = True


def _write(
    memory: Tensor,
    numbers: Complex[Tensor, "slots blocks"],
    blocks: Tensor | slice,
) -> None:
    memory[: len(numbers), blocks] = torch.view_as_real(numbers.resolve_conj()).to(memory.device)
