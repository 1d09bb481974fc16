"""RoadLinear: one rotated linear layer by itself, for a network that is no transformers model."""

from typing import Any

from torch import Tensor, nn

from roadint.adapters.adapter import RoadAdapter
from roadint.adapters.merging import Merged, merge
from roadint.adapters.targets import layout_of
from roadint.errors import RoadError
from roadint.grammar.composition import Composition
from roadint.rotation.kernels.torch import turn

_ALONE = Composition((("road", 1.0),))


class RoadLinear(nn.Module):
    """`R (W x + b)`, of a Linear, a Conv1D or an embedding, which stays what it is (paper section 3.2).

    base: the layer; freeze it (`requires_grad_(False)`) to train the rotation alone. variant, pairing, subspace, lora_rank,
    lora_alpha: as in roadint.adapters.adapter.RoadAdapter, which is `road`: theta, alpha, and LoRA's matrices, in float32.
    Inputs and outputs are the layer's, in its dtype. Raises RoadError where an argument does not fit, or the width is odd.
    For the layers of a transformers model, many adapters and mixed batches, see roadint.add_linear_road.
    """

    def __init__(self, base: nn.Module, **arguments: Any) -> None:
        super().__init__()
        self.base = base
        self.road = RoadAdapter("road", layout_of(self, ["base"]), **arguments)
        self.road.to(next(base.parameters()).device)
        self._merged: Merged | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., inputs] → [..., outputs]."""
        output: Tensor = self.base(x)
        if self._merged:
            return output
        rotation = self.road.rotation()
        turned = turn(output, rotation.u, rotation.v, self.road.groups[0])
        for a, b in self.road.lora():
            turned = turned + (x.to(a.dtype) @ a.T) @ b.T
        return turned.to(output.dtype)

    def merge(self, *, keep: bool = False) -> Merged:
        """Put the rotation into the layer's weights. keep: keep them as they were, for an exact `unmerge`. Raises RoadError."""
        if self._merged:
            raise RoadError("this layer is merged already: unmerge() first")
        self._merged = merge(self, {"road": self.road}, _ALONE, keep)
        return self._merged

    def unmerge(self) -> None:
        """Take the rotation out of the weights again. Raises RoadError where it is not in them."""
        if not self._merged:
            raise RoadError("this layer is not merged: expected merge() before unmerge()")
        self._merged.undo()
        self._merged = None
