"""RoadAdapter: RoAd on the outputs of linear layers (paper sections 3.2, 4.1), alone or with LoRA.

θ and α of all targets lie end to end in two parameters: one operation makes all rotations of a
model, and an optimizer sees two tensors instead of hundreds.
"""

import copy
import itertools
import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from roadint.adapters.targets import Layout
from roadint.errors import RoadError, listing, quoted
from roadint.grammar.composition import check_strength
from roadint.grammar.relative import relative_text
from roadint.grammar.subspace import Subspace, SubspaceLike, check_name
from roadint.rotation.parameters import KeepsPrecision
from roadint.rotation.rotation import (
    Pairing,
    Rotation,
    Variant,
    check_scale,
    check_variant,
    group_size,
    parameter_shape,
    positive,
    rotation,
)


class RoadAdapter(KeepsPrecision):
    """`R W x + R b` for every target; with LoRA `R (W x + b) + (lora_alpha / lora_rank) · B A x`.

    All values start as the identity, in float32: `theta` (radians) and `alpha` for all targets
    together; `lora_a` [rank, inputs] and `lora_b` [outputs, rank], None without LoRA.

    Args:
        name: The adapter's name in compositions.
        layout: The targets.
        variant: As in RoadIntervention.
        pairing: As in RoadIntervention; a group size has to divide all widths.
        subspace: The blocks of every target that rotate, such as "[0, d/2)"; all by default.
        lora_rank: The rank of a LoRA beside the rotations; 0 for none.
        lora_alpha: LoRA's scale times its rank; the rank by default.
        heads: Modules by path, such as a classifier. Copies of them train with the adapter, and
            replace them where it acts.

    Raises:
        RoadError: where an argument does not fit.
    """

    theta: Float[nn.Parameter, " blocks *entries"]
    alpha: Float[nn.Parameter, " blocks *entries"]
    held: Float[Tensor, " blocks"] | None
    """1 for the blocks of the subspace, 0 for others; None without a subspace."""

    @torch.inference_mode(False)  # values that are made in inference mode can't train
    def __init__(
        self,
        name: str,
        layout: Layout,
        *,
        variant: Variant = "road_1",
        pairing: Pairing = "adjacent",
        subspace: SubspaceLike = None,
        lora_rank: int = 0,
        lora_alpha: float | None = None,
        heads: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.name, self.layout = check_name(name), layout
        self.variant, self.pairing = check_variant(variant), pairing
        self.groups = tuple(group_size(pairing, width) for width in layout.widths)
        shape = parameter_shape(self.variant, sum(layout.blocks))
        self.theta = nn.Parameter(torch.zeros(shape, dtype=torch.float32))
        self.alpha = nn.Parameter(torch.ones(shape, dtype=torch.float32))
        self.subspace = None if subspace is None else relative_text(subspace, set(layout.widths))
        self.register_buffer("held", self._held_blocks(), persistent=False)
        self._add_lora(lora_rank, lora_alpha)
        heads = heads or {}
        self.head_paths = tuple(heads)
        self.heads = nn.ModuleList(_copy_of(path, module) for path, module in heads.items())

    def _held_blocks(self) -> Tensor | None:
        if self.subspace is None:
            return None
        parts = []
        for width in self.layout.widths:
            part = torch.zeros(width // 2, dtype=torch.float32)
            part[torch.tensor(Subspace.parse(self.subspace, width).blocks)] = 1.0
            parts.append(part)
        return torch.cat(parts)

    def _add_lora(self, rank: int, alpha: float | None) -> None:
        widths, inputs = self.layout.widths, self.layout.inputs
        most = max(1024, *widths, *inputs)
        if not isinstance(rank, int) or isinstance(rank, bool) or not 0 <= rank <= most:
            raise RoadError(
                f"lora_rank={quoted(rank)}: expected a count up to {most}, 0 for no LoRA"
            )
        if alpha is not None and not (_is_number(alpha) and abs(alpha) < 1e38):
            raise RoadError(
                f"lora_alpha={quoted(alpha)}: expected a finite number, such as twice the rank"
            )
        self.lora_rank, self.lora_alpha = rank, float(rank if alpha is None else alpha)
        self.register_parameter("lora_a", None)
        self.register_parameter("lora_b", None)
        if rank:
            columns = [torch.empty(rank, width, dtype=torch.float32) for width in inputs]
            for matrix in columns:
                nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))  # as LoRA starts
            self.lora_a = nn.Parameter(torch.cat(columns, dim=1))
            self.lora_b = nn.Parameter(torch.zeros(sum(widths), rank, dtype=torch.float32))

    @property
    def layout_and_groups(self) -> tuple[Layout, tuple[int, ...]]:
        """What adapters must share to act as one product: targets, and pairs at every target."""
        return self.layout, self.groups

    @property
    def trainable_count(self) -> int:
        """How many numbers train, LoRA's and the heads' included."""
        held = len(self.theta) if self.held is None else int(self.held.sum())
        beside = [self.lora_a, self.lora_b, *self.heads.parameters()]
        return 2 * held * self.theta[0].numel() + sum(
            parameter.numel() for parameter in beside if parameter is not None
        )

    def acting_values(self) -> list[Tensor]:
        """The tensors that its rotations are made from: θ, α and the blocks of its subspace."""
        values = (self.theta, self.alpha, self.held)
        return [tensor for tensor in values if tensor is not None]

    def rotation(self, strength: float = 1.0, *, learning: bool = True) -> Rotation:
        """The rotations of all targets, end to end.

        Args:
            strength: The adapter's strength.
            learning: Whether θ and α get gradients.

        Returns:
            The rotation, whose blocks are those of all targets.

        Raises:
            RoadError: where the strength makes a scale too large.
        """
        self.check_strength(strength)
        theta, alpha = self.theta, self.alpha
        if not learning:
            theta, alpha = theta.detach(), alpha.detach()  # type: ignore[assignment]
        return rotation(theta, alpha, self._strengths(strength), variant=self.variant)

    def _strengths(self, strength: float) -> Tensor | float:
        return strength if self.held is None else self.held * strength

    def check_strength(self, strength: float) -> None:
        """Refuse a strength at which a scale is too large.

        Raises:
            RoadError: where it is.
        """
        if not 0 <= strength <= 1:
            check_scale(self.alpha, self._strengths(strength), self._holder)

    def _holder(self, block: int) -> str:
        """The adapter and the target of a block, for messages."""
        ends = itertools.accumulate(self.layout.blocks)
        path = next(path for path, end in zip(self.layout.paths, ends, strict=True) if block < end)
        return f"{self.name!r}, at {path}"

    def of(
        self, path: str
    ) -> tuple[Float[Tensor, " blocks *entries"], Float[Tensor, " blocks *entries"]]:
        """The values of one target.

        Args:
            path: The target's path.

        Returns:
            θ and α of the target, views of the adapter's.

        Raises:
            RoadError: where it is no target.
        """
        if path not in self.layout.paths:
            raise RoadError(
                f"{quoted(path)} is no target of {self.name!r}: "
                f"expected one of {listing(self.layout.paths)}"
            )
        return self.layout.part(self.theta, path), self.layout.part(self.alpha, path)

    def held_values(
        self, path: str
    ) -> tuple[Float[Tensor, " blocks *entries"], Float[Tensor, " blocks *entries"]]:
        """The values of one target as they act.

        Args:
            path: The target's path.

        Returns:
            θ and α of the target, as detached copies; blocks outside the subspace are the identity.

        Raises:
            RoadError: where it is no target.
        """
        theta, alpha = (values.detach().clone() for values in self.of(path))
        if self.held is not None:
            left_out = self.layout.part(self.held, path) == 0
            theta[left_out], alpha[left_out] = 0.0, 1.0
        return theta, alpha

    def lora(
        self, *, learning: bool = True
    ) -> list[tuple[Float[Tensor, "rank inputs"], Float[Tensor, "outputs rank"]]]:
        """The LoRA of every target.

        Args:
            learning: Whether A and B get gradients.

        Returns:
            A and B of every target, B times the scale; an empty list without LoRA.
        """
        if not self.lora_rank:
            return []
        a, b = self.lora_a, self.lora_b
        if not learning:
            a, b = a.detach(), b.detach()  # type: ignore[assignment]
        of_a = torch.split(a, list(self.layout.inputs), 1)
        of_b = torch.split(b * (self.lora_alpha / self.lora_rank), list(self.layout.widths))
        return list(zip(of_a, of_b, strict=True))

    def rescale(self, strength: float) -> None:
        """Make a strength of rotations and LoRA the new strength 1, exactly and in place.

        Args:
            strength: The strength.

        Raises:
            RoadError: where a scale becomes too large.
        """
        check_strength(self.name, strength)
        self.check_strength(strength)
        with torch.no_grad():
            angle, scale = positive(self.theta, self.alpha)
            self.theta.copy_(angle * strength)
            self.alpha.copy_(scale**strength)
            if self.lora_rank:
                self.lora_b.mul_(strength)

    def spec(self) -> dict[str, Any]:
        """The arguments that make this adapter again, without its values, as plain JSON values."""
        return {
            "name": self.name,
            "variant": self.variant,
            "pairing": self.pairing,
            "subspace": self.subspace,
            "lora_rank": self.lora_rank,
            "lora_alpha": self.lora_alpha,
            "paths": list(self.layout.paths),
            "widths": list(self.layout.widths),
            "inputs": list(self.layout.inputs),
            "heads": list(self.head_paths),
        }

    def values(self) -> dict[str, Tensor]:
        """The tensors that a checkpoint keeps: parameters and heads' states by name, detached."""
        values = {name: value.detach() for name, value in self.named_parameters(recurse=False)}
        for path, head in zip(self.head_paths, self.heads, strict=True):
            for name, value in head.state_dict(keep_vars=True).items():
                values[f"heads.{path}.{name}"] = value.detach()
        return values

    def extra_repr(self) -> str:
        """The arguments that `print` shows."""
        targets, numbers = len(self.layout.paths), self.trainable_count
        return f"{self.name}, {self.variant}, {targets} targets, {numbers:,} numbers"


def _copy_of(path: str, module: nn.Module) -> nn.Module:
    if any(value.device.type == "meta" for value in module.parameters()):
        raise RoadError(
            f"heads names {path!r}, which is offloaded: its weights are not in memory; expected a "
            "device_map that keeps it on a device"
        )
    return copy.deepcopy(module).float().requires_grad_()


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
