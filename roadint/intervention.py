"""RoadIntervention: RoAd on a hidden state, as a pyvene intervention (paper section 4.3).

It holds θ and α of one site and says where it acts: layer and component, position, partition. It runs in pyvene's
IntervenableModel and in roadint's RoadModel alike; both turn a row's composition into strengths a block, and those into a Rotation.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from roadint._pyvene import DistributedRepresentationIntervention, SourcelessIntervention, TrainableIntervention
from roadint.basis import Basis, BasisKind, rotate
from roadint.composition import ALL, Composition
from roadint.errors import RoadError, did_you_mean, listing
from roadint.position import Phase, Position
from roadint.rotation import Pairing, Rotation, Variant, check_variant, group_size, parameter_shape, rotation
from roadint.subspace import Partition, Subspace, SubspaceLike

# The other fields of pyvene's RepresentationConfig; they say nothing that a rotation needs.
_PYVENE_FIELDS = {"unit", "low_rank_dimension", "intervention_type", "intervention", "group_key", "intervention_link_key"}
_PYVENE_FIELDS |= {"moe_key", "source_representation", "hidden_source_representation", "latent_dim", "use_fast", "keep_last_dim"}

WHOLE = "road"  # the name of the one subspace of an intervention that names none


class RoadIntervention(SourcelessIntervention, TrainableIntervention, DistributedRepresentationIntervention):  # type: ignore[misc]
    """`Φ(h) = R h` on the output of one component, each row through its own subspaces.

    layer: the layer, from 0. component: "block_output", "attention_output" or "mlp_output".
    position, phase: which tokens; see roadint.position.Position. pyvene's own `unit_locations` say it there.
    variant: "road_1", "road_2" or "road_4". pairing: "adjacent" (the paper's), "half" or a group size.
    subspaces: named subspaces, {"german": "[0, d/2)", …}; or subspace: a single one, named "road"; or neither: the whole width.
    basis, basis_seed: the fixed orthogonal basis in which pairs are formed; see roadint.basis.Basis.
    embed_dim: the width of the hidden state. Without it the parameters wait until a model tells the width (`bind`).

    theta (radians) and alpha are float32 parameters of shape (blocks,), (blocks, 2) or (blocks, 2, 2), for RoAd1, 2 and 4; they
    start at 0 and 1 (the identity) and stay float32 whatever the model's dtype. Blocks outside all subspaces never move.
    Raises RoadError where an argument does not fit.
    """

    theta: nn.Parameter
    alpha: nn.Parameter
    partition: Partition

    def __init__(
        self,
        *,
        layer: int = 0,
        component: str = "block_output",
        position: str | Position = "last",
        phase: Phase = "prompt",
        variant: Variant = "road_1",
        subspace: SubspaceLike = None,
        subspaces: Mapping[str, SubspaceLike] | None = None,
        embed_dim: int | Tensor | None = None,
        pairing: Pairing = "adjacent",
        basis: BasisKind = "identity",
        basis_seed: int = 0,
        subspace_partition: Sequence[Sequence[int]] | None = None,
        max_number_of_units: int = 1,
        **kwargs: Any,  # what pyvene gives an intervention_type besides; see _PYVENE_FIELDS
    ) -> None:
        super().__init__(keep_last_dim=True, use_fast=kwargs.get("use_fast", False))
        for name in kwargs:
            if name not in _PYVENE_FIELDS:
                own = [*inspect.signature(RoadIntervention).parameters][:-1]
                raise RoadError(
                    f"RoadIntervention has no argument {name!r}: expected one of {listing(own)}{did_you_mean(name, own)}"
                )
        if sum(given is not None for given in (subspace, subspaces, subspace_partition)) > 1:
            raise RoadError("subspace, subspaces and subspace_partition say the same thing: expected only one of them")
        if not isinstance(layer, int) or layer < 0:
            raise RoadError(f"layer {layer!r} is no index: expected an integer from 0")
        self.layer, self.component = layer, component
        self.position = Position.parse(position, phase)
        self.variant = check_variant(variant)
        self.pairing, self.basis = pairing, Basis(basis, basis_seed)
        # pyvene's `subspaces` mean dims where there is no partition, else indices into it.
        self.counts_dims = subspaces is None and subspace_partition is None
        if subspace_partition is not None:
            subspaces = {f"subspace_{index}": part for index, part in enumerate(subspace_partition)}
        self._subspaces = subspaces if subspaces is not None else {WHOLE: "[0, d)" if subspace is None else subspace}
        self.register_parameter("theta", None)
        self.register_parameter("alpha", None)
        self.register_buffer("q", None, persistent=False)
        if embed_dim is not None:
            # pyvene multiplies the width by the number of positions, although keep_last_dim keeps them apart.
            self.bind(int(embed_dim) // max_number_of_units)

    def bind(self, width: int) -> "RoadIntervention":
        """Settle the width: check the subspaces against it and make the parameters. Returns self; raises RoadError."""
        if self.bound:
            if self.width != width:
                raise RoadError(f"the intervention at layer {self.layer} has width {self.width}, the model has {width}")
            return self
        self.group = group_size(self.pairing, width)
        self.partition = Partition(self._subspaces, width)
        shape = parameter_shape(self.variant, width // 2)
        self.theta, self.alpha = nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.ones(shape))
        self.q = self.basis.matrix(width)
        self.embed_dim = torch.tensor(width)
        self.interchange_dim = torch.tensor(width)
        return self

    @property
    def bound(self) -> bool:
        """Whether the width is known and the parameters exist."""
        return self.theta is not None

    @property
    def width(self) -> int:
        """The width of the hidden state. Raises RoadError before it is known."""
        self._check_bound()
        return self.partition.width

    @property
    def trainable_count(self) -> int:
        """How many numbers train: those of the blocks that some subspace holds."""
        self._check_bound()
        return 2 * self.partition.covered() * self.theta[0].numel()

    def spec(self) -> dict[str, Any]:
        """The arguments that make this intervention again, without its values, as plain JSON values."""
        return {
            "layer": self.layer,
            "component": self.component,
            "position": str(self.position),
            "phase": self.position.phase,
            "variant": self.variant,
            "subspaces": {name: str(subspace) for name, subspace in self.partition.items()},
            "embed_dim": self.width,
            "pairing": self.pairing,
            "basis": self.basis.kind,
            "basis_seed": self.basis.seed,
        }

    def strengths(self, compositions: Sequence[Composition]) -> Tensor:
        """[rows, blocks] float32 on the parameters' device: how strongly each block acts for each composition."""
        self._check_bound()
        distinct = {composition: index for index, composition in enumerate(dict.fromkeys(compositions))}
        table = torch.stack([self.partition.strengths(dict(composition.terms)) for composition in distinct])
        if bool((table < 0).any()) and bool((self.alpha == 0).any()):
            raise RoadError("a scale α of zero has no inverse: negative strengths are undefined here")
        index = torch.tensor([distinct[composition] for composition in compositions])
        return table[index].to(self.theta.device)

    def rotation(self, strengths: Tensor | float = 1.0, learning: Tensor | None = None) -> Rotation:
        """The Rotation at these strengths, one for each leading row; see roadint.rotation.rotation.

        learning: [rows, blocks] bool, the blocks that get a row's gradient; all of them by default.
        """
        self._check_bound()
        theta: Tensor = self.theta
        alpha: Tensor = self.alpha
        if learning is not None:
            learning = learning.reshape(*learning.shape, *(1,) * (theta.ndim - 1))
            theta, alpha = torch.where(learning, theta, theta.detach()), torch.where(learning, alpha, alpha.detach())
        return rotation(theta, alpha, strengths, variant=self.variant, group=self.group)

    def edit(self, h: Tensor, rotation: Rotation) -> Tensor:
        """Apply a rotation to hidden states [..., width], in the basis of this intervention; same dtype out."""
        return rotate(h, rotation, self.q)

    def forward(self, base: Tensor, source: Tensor | None = None, subspaces: Any = None, **kwargs: Any) -> Tensor:
        """pyvene's entry. base: [rows, positions, width] or [rows, width]; the dtype is kept.

        subspaces: None (all of them), or one entry a row: a composition ("german", "a + 0.5*b"), or a list of names, of indices
        into the partition or, where the intervention names no subspaces, of dims (whole blocks). Raises RoadError otherwise.
        """
        del source, kwargs
        rows = base.shape[0]
        if base.shape[-1] != self.width:
            raise RoadError(f"hidden states of width {base.shape[-1]} for an intervention of width {self.width}")
        strengths = self._strengths_of(subspaces, rows)
        rotations = self.rotation(strengths)
        if base.ndim == 3:
            rotations = Rotation(rotations.direct[:, None], rotations.cross[:, None], self.group)
        return self.edit(base, rotations)

    def _strengths_of(self, subspaces: Any, rows: int) -> Tensor:
        names = list(self.partition)
        if subspaces is None:
            return self.strengths([Composition.parse(ALL, names)] * rows)
        entries = list(subspaces)
        if len(entries) != rows:
            raise RoadError(f"{len(entries)} entries in subspaces for {rows} rows: expected one a row")
        if self.counts_dims and any(_is_dims(entry) for entry in entries):
            return torch.stack([self._strengths_of_dims(entry) for entry in entries])
        return self.strengths([Composition.parse(self._as_composition(entry, names), names) for entry in entries])

    def _strengths_of_dims(self, dims: Any) -> Tensor:
        strengths = torch.zeros(self.width // 2, device=self.theta.device)
        if _is_dims(dims):
            chosen = Subspace.from_dims(dims, self.width)
            inside = set(self.partition[WHOLE].blocks)
            outside = [block for block in chosen.blocks if block not in inside]
            if outside:
                raise RoadError(f"dims {2 * outside[0]} and {2 * outside[0] + 1} are outside the subspace {self.partition[WHOLE]}")
            strengths[torch.tensor(chosen.blocks)] = 1.0
            return strengths
        return self.strengths([Composition.parse(dims, list(self.partition))])[0]

    @staticmethod
    def _as_composition(entry: Any, names: list[str]) -> Any:
        if entry is None or isinstance(entry, (str, Mapping, Composition)):
            return entry
        chosen: dict[str, float] = {}
        for item in entry if isinstance(entry, Sequence) or torch.is_tensor(entry) else [entry]:
            name = item
            if not isinstance(item, str):
                if not 0 <= int(item) < len(names):
                    raise RoadError(f"subspace index {int(item)} is outside the partition: expected 0 to {len(names) - 1}")
                name = names[int(item)]
            chosen[name] = 1.0
        return chosen

    def _check_bound(self) -> None:
        if not self.bound:
            raise RoadError(
                f"the intervention at layer {self.layer} does not know its width yet: "
                "give embed_dim=…, or hand it to RoadModel or pyvene_config"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RoadIntervention":
        # .to(), .half(), .bfloat16() of a surrounding model move the parameters but never change their dtype.
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """What `print` shows of it, inside and outside a model."""
        subspaces = dict(self.partition) if self.bound else dict(self._subspaces)
        listed = ", ".join(f"{name}={subspace}" for name, subspace in subspaces.items())
        return f"layer={self.layer}, component={self.component}, position={self.position}, variant={self.variant}, {listed}"

    def __str__(self) -> str:
        return f"RoadIntervention({self.extra_repr()})"


def subspace_names(interventions: Iterable[RoadIntervention]) -> list[str]:
    """The names of all their subspaces, in order, each once: what a composition may use."""
    return list(dict.fromkeys(name for intervention in interventions for name in intervention.partition))


def _is_dims(entry: Any) -> bool:
    """Whether a row's entry counts dims: a sequence or tensor of integers."""
    if torch.is_tensor(entry):
        return True
    return isinstance(entry, (Sequence, range)) and not isinstance(entry, str) and all(isinstance(i, int) for i in entry)
