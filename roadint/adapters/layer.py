"""RoadLinear: a single rotated linear layer, for networks that are no transformers models."""

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from roadint.adapters.adapter import RoadAdapter
from roadint.adapters.merging import Merged, merge
from roadint.adapters.targets import layout_of
from roadint.errors import RoadError
from roadint.grammar.composition import Composition
from roadint.rotation.kernels.torch import turn

_ALONE = Composition((("road", 1.0),))


class RoadLinear(nn.Module):
    """`R (W x + b)` of a Linear, a Conv1D or an embedding (paper section 3.2).

    The layer itself does not change; freeze it (`requires_grad_(False)`) to train the rotation
    alone. `road` is a roadint.adapters.adapter.RoadAdapter. For transformers models, many adapters
    and mixed batches, see roadint.add_linear_road.

    Args:
        base: The layer.
        **arguments: `variant`, `pairing`, `subspace`, `lora_rank`, `lora_alpha`: as in RoadAdapter.

    Raises:
        RoadError: where an argument does not fit, or the width of the output is odd.

    Examples:
        >>> import torch
        >>> layer = RoadLinear(nn.Linear(6, 8).requires_grad_(False))
        >>> layer(torch.ones(2, 6)).shape
        torch.Size([2, 8])
        >>> [name for name, value in layer.named_parameters() if value.requires_grad]
        ['road.theta', 'road.alpha']
    """

    def __init__(self, base: nn.Module, **arguments: Any) -> None:
        super().__init__()
        if arguments.get("lora_rank") and isinstance(base, nn.Embedding):
            raise RoadError("no LoRA is possible beside an embedding: expected lora_rank=0")
        self.base = base
        self.road = RoadAdapter("road", layout_of(self, ["base"]), **arguments)
        self.road.to(next(base.parameters()).device)
        self._merged: Merged | None = None

    def forward(
        self, x: Float[Tensor, "*rows inputs"] | Int[Tensor, "*rows"]
    ) -> Float[Tensor, "*rows outputs"]:
        """Run the layer and rotate its output.

        Args:
            x: The layer's input.

        Returns:
            The rotated output, in the layer's dtype.
        """
        output: Tensor = self.base(x)
        if self._merged:
            return output
        rotation = self.road.rotation()
        turned = turn(output, rotation.u, rotation.v, self.road.groups[0])
        for a, b in self.road.lora():
            turned = turned + (x.to(a.dtype) @ a.T) @ b.T
        return turned.to(output.dtype)

    def merge(self, *, keep: bool = False) -> Merged:
        """Put the rotation into the layer's weights.

        Args:
            keep: Keep a copy of the weights, for an exact `unmerge`.

        Returns:
            What was merged, and how much of it the weights' dtype rounds away.

        Raises:
            RoadError: where it is merged already, and as roadint.adapters.merging.merge.
        """
        if self._merged:
            raise RoadError("this layer is merged already: unmerge() first")
        self._merged = merge(self, {"road": self.road}, _ALONE, keep)
        return self._merged

    def unmerge(self) -> None:
        """Take the rotation out of the weights again.

        Raises:
            RoadError: where it is not merged.
        """
        if not self._merged:
            raise RoadError("this layer is not merged: expected merge() before unmerge()")
        self._merged.undo()
        self._merged = None
