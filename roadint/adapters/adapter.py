"""RoadAdapter: one adapter, RoAd on the outputs of linear layers (paper sections 3.2 and 4.1), alone or with LoRA.

θ and α of all targets lie end to end in two parameters: one operation makes all rotations of a model, and an optimizer sees two
tensors instead of hundreds.
"""

import copy
import itertools
import math
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from roadint.adapters.targets import Layout
from roadint.engines.locks import Lock
from roadint.errors import RoadError, listing, quoted
from roadint.files.jsonable import slice_text
from roadint.grammar.composition import check_strength
from roadint.grammar.subspace import Subspace, SubspaceLike, check_name
from roadint.rotation.parameters import KeepsPrecision
from roadint.rotation.rotation import (
    Pairing,
    Rotation,
    Variant,
    canonical,
    check_scale,
    check_variant,
    group_size,
    parameter_shape,
    rotation,
)


class RoadAdapter(KeepsPrecision):
    """`R W x + R b`, with LoRA `R (W x + b) + (lora_alpha / lora_rank) · B A x`, for every target of a layout.

    name: what a composition calls it. variant, pairing: as in RoadIntervention; a group size has to divide every width.
    subspace: which blocks of every target turn, such as "[0, d/2)"; all by default.
    lora_rank: of a LoRA beside the rotations; 0 for none. lora_alpha: its scale times its rank; the rank by default.
    heads: path → module, whose copies train with the adapter and stand in for the originals where it acts (a classifier).

    theta (radians) and alpha: float32, (blocks,), (blocks, 2) or (blocks, 2, 2) for all targets together; lora_a (rank, inputs) and
    lora_b (outputs, rank). All start as the identity. Raises RoadError where an argument does not fit.
    """

    kind = "linear"
    theta: nn.Parameter
    alpha: nn.Parameter

    @torch.inference_mode(False)  # its values can be changed later on, wherever they were made
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
        heads: dict[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.name, self.layout = check_name(name), layout
        self.variant, self.pairing = check_variant(variant), pairing
        self.groups = tuple(group_size(pairing, width) for width in layout.widths)
        shape = parameter_shape(self.variant, sum(layout.blocks))
        self.theta, self.alpha = nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.ones(shape))
        self.subspace = None if subspace is None else _as_text(subspace, set(layout.widths))
        self.register_buffer("held", self._held(), persistent=False)
        most = max(1024, *layout.widths, *layout.inputs)
        if (
            not isinstance(lora_rank, int)
            or isinstance(lora_rank, bool)
            or not 0 <= lora_rank <= most
        ):
            raise RoadError(
                f"lora_rank={quoted(lora_rank)}: expected a count up to {most}, 0 for no LoRA"
            )
        if lora_alpha is not None and not (_is_number(lora_alpha) and abs(lora_alpha) < 1e38):
            raise RoadError(
                f"lora_alpha={quoted(lora_alpha)}: expected a finite number, such as twice the rank"
            )
        self.lora_rank, self.lora_alpha = (
            lora_rank,
            float(lora_rank if lora_alpha is None else lora_alpha),
        )
        self.register_parameter("lora_a", None)
        self.register_parameter("lora_b", None)
        if lora_rank:
            columns = [torch.empty(lora_rank, width) for width in layout.inputs]
            for each in columns:
                nn.init.kaiming_uniform_(each, a=math.sqrt(5))  # as LoRA starts
            self.lora_a = nn.Parameter(torch.cat(columns, dim=1))
            self.lora_b = nn.Parameter(torch.zeros(sum(layout.widths), lora_rank))
        self.head_paths = tuple(heads or {})
        self.heads = nn.ModuleList(
            copy.deepcopy(module).float().requires_grad_() for module in (heads or {}).values()
        )
        self._seen: list[Tensor] = []
        self._state = object()
        self._seeing = Lock()

    held: Tensor | None

    def _held(self) -> Tensor | None:
        """[blocks] float32: 1 where the subspace holds a block; None where it holds all."""
        if self.subspace is None:
            return None
        parts = []
        for width in self.layout.widths:
            part = torch.zeros(width // 2)
            part[torch.tensor(Subspace.parse(self.subspace, width).blocks)] = 1.0
            parts.append(part)
        return torch.cat(parts)

    @property
    def place(self) -> tuple[Layout, tuple[int, ...]]:
        """The targets, and the group size of the pairs at each."""
        return self.layout, self.groups

    @property
    def trainable_count(self) -> int:
        """How many numbers train, LoRA's and heads' included."""
        held = len(self.theta) if self.held is None else int(self.held.sum())
        beside = [
            each
            for each in (self.lora_a, self.lora_b, *self.heads.parameters())
            if each is not None
        ]
        return 2 * held * self.theta[0].numel() + sum(each.numel() for each in beside)

    def rotation(self, strength: float = 1.0, *, learning: bool = True) -> Rotation:
        """The rotations of all targets, end to end: u, v [blocks]. learning: whether the values get gradients.

        Raises RoadError where the strength makes a scale too large.
        """
        self._check_strength(strength)
        theta, alpha = (
            (self.theta, self.alpha) if learning else (self.theta.detach(), self.alpha.detach())
        )
        strengths = strength if self.held is None else self.held * strength
        return rotation(theta, alpha, strengths, variant=self.variant)

    def _check_strength(self, strength: float) -> None:
        if not 0 <= strength <= 1:
            check_scale(
                self.alpha, strength if self.held is None else self.held * strength, self._owner
            )

    def _owner(self, block: int) -> str:
        ends = itertools.accumulate(self.layout.blocks)
        path = next(path for path, end in zip(self.layout.paths, ends, strict=True) if block < end)
        return f"{self.name!r}, at {path}"

    def of(self, path: str) -> tuple[Tensor, Tensor]:
        """θ and α of one target. Raises RoadError where it is none."""
        if path not in self.layout.paths:
            raise RoadError(
                f"{quoted(path)} is no target of {self.name!r}: expected one of {listing(self.layout.paths)}"
            )
        place = self.layout.paths.index(path)
        return torch.split(self.theta, self.layout.blocks)[place], torch.split(
            self.alpha, self.layout.blocks
        )[place]

    def held_values(self, path: str) -> tuple[Tensor, Tensor]:
        """As `of`, detached, and the identity in the blocks that the subspace leaves out."""
        theta, alpha = (each.detach().clone() for each in self.of(path))
        if self.held is not None:
            left_out = (
                torch.split(self.held, self.layout.blocks)[self.layout.paths.index(path)] == 0
            )
            theta[left_out], alpha[left_out] = 0.0, 1.0
        return theta, alpha

    def lora(self, *, learning: bool = True) -> list[tuple[Tensor, Tensor]]:
        """A [rank, inputs] and B [outputs, rank] of every target, B with the scale in it; empty where there is no LoRA."""
        if not self.lora_rank:
            return []
        a, b = (
            (self.lora_a, self.lora_b) if learning else (self.lora_a.detach(), self.lora_b.detach())
        )
        scaled = b * (self.lora_alpha / self.lora_rank)
        return list(
            zip(
                torch.split(a, list(self.layout.inputs), 1),
                torch.split(scaled, list(self.layout.widths)),
                strict=True,
            )
        )

    def rescale(self, strength: float) -> None:
        """Make this strength the new 1, exactly: of the rotations, and of a LoRA. Raises RoadError where a scale is too large."""
        check_strength(self.name, strength)
        self._check_strength(strength)
        with torch.no_grad():
            angle, scale = canonical(self.theta, self.alpha)
            self.theta.copy_(angle * strength)
            self.alpha.copy_(scale**strength)
            if self.lora_rank:
                self.lora_b.mul_(strength)

    def state(self) -> object:
        """What no other values of θ and α of any adapter have or had: itself, so that it is so in another process too.

        The values themselves are compared with those that were seen last: torch's version counters miss fused optimizers, `.data`
        and more. One wait for the device a call.
        """
        now = [each.detach() for each in (self.theta, self.alpha, self.held) if each is not None]
        with self._seeing, torch.inference_mode(False), torch.no_grad():
            if not _same(now, self._seen):
                self._seen, self._state = [each.clone() for each in now], object()
            return self._state

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
        """What a checkpoint keeps: every parameter and every number of a head by its name, detached."""
        own = {name: value.detach() for name, value in self.named_parameters(recurse=False)}
        for path, head in zip(self.head_paths, self.heads, strict=True):
            own |= {
                f"heads.{path}.{name}": value.detach()
                for name, value in head.state_dict(keep_vars=True).items()
            }
        return own

    def extra_repr(self) -> str:
        """What `print` shows of it."""
        return f"{self.name}, {self.variant}, {len(self.layout.paths)} targets, {self.trainable_count:,} numbers"


def _same(now: Sequence[Tensor], before: Sequence[Tensor]) -> bool:
    """Whether these are equal numbers, on the same device."""
    return len(now) == len(before) and all(
        one.shape == other.shape and one.device == other.device and torch.equal(one, other)
        for one, other in zip(now, before, strict=True)
    )


def _as_text(subspace: SubspaceLike, widths: Iterable[int]) -> str:
    """The same subspace as text, which a checkpoint can keep: relative to each width where it is ("[0, d/2)", slice(8, None)).

    Raises RoadError where it is none, or no one text says at each width what was given (slice(0, 48) of 32 and of 64 dims).
    """
    blocks = {width: Subspace.parse(subspace, width) for width in widths}
    if isinstance(subspace, str):
        return " ".join(subspace.split())
    texts = {str(each) for each in blocks.values()}
    text = texts.pop() if len(texts) == 1 else _relative(subspace)
    if all(_means(text, width) == each.blocks for width, each in blocks.items()):
        return text
    raise RoadError(
        f"subspace {quoted(subspace)} is not the same at widths {listing(blocks)}: expected text such as '[0, d/2)'"
    )


def _relative(subspace: SubspaceLike) -> str:
    """Slices and ranges of a list, one by one, without a width."""
    if isinstance(subspace, slice):
        return slice_text(subspace)
    if isinstance(subspace, range):
        return f"[{subspace.start}, {subspace.stop})"
    if isinstance(subspace, Sequence) and not isinstance(subspace, str):
        pair = len(subspace) == 2 and all(isinstance(each, (int, str)) for each in subspace)
        return f"[{subspace[0]}, {subspace[1]})" if pair else " | ".join(map(_relative, subspace))
    return str(subspace)


def _means(text: str, width: int) -> list[int] | None:
    """The blocks of a text at a width; None where it has no meaning there."""
    try:
        return Subspace.parse(text, width).blocks
    except RoadError:
        return None


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
