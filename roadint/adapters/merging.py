"""Merging adapters into the weights, so that the model runs at no extra cost (paper section 3.2).

The weights become `R W` and `R b`, with LoRA `R W + B A`. A rotation mixes pairs of matrix rows, so
merging takes a few pairs at a time and never a second matrix of the layer's size.
"""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from roadint.adapters.adapter import RoadAdapter
from roadint.adapters.products import by_layout, product
from roadint.errors import RoadError
from roadint.grammar.composition import Composition
from roadint.rotation.kernels.torch import turn
from roadint.rotation.rotation import Rotation

_CHUNK = 1 << 20  # numbers that are worked on at a time: they stay in the processor's cache
_WARN = 0.2  # share of the change that rounding may lose before a warning

LowRank = tuple[Float[Tensor, "rank inputs"], Float[Tensor, "outputs rank"]]
Change = Rotation | LowRank  # of the weights of one module


@dataclass
class Merged:
    """What was merged.

    Args:
        composition: The composition of adapters.
        rounding: By path, the error of rounding to the weights' dtype, as a share of the change.
        originals: Parameters, and copies of their values before.
        changes: Modules and their changes, in order, to undo by inverse rotations.
    """

    composition: Composition
    rounding: dict[str, float]
    originals: list[tuple[Tensor, Tensor]] = field(repr=False)
    changes: list[tuple[nn.Module, Change]] = field(repr=False)

    @torch.no_grad()
    def undo(self) -> None:
        """Restore the weights.

        From copies exactly, else by inverse rotations, up to rounding in their dtype.
        """
        for module, change in reversed(self.changes):
            if isinstance(change, Rotation):
                _turn(module, change.inverse())
            else:
                a, b = change
                _add(module, a, -b)
        for parameter, before in self.originals:
            parameter.copy_(before)
        for module, _ in self.changes:
            _note_change(module)


@torch.no_grad()
def merge(
    model: nn.Module, adapters: Mapping[str, RoadAdapter], composition: Composition, keep: bool
) -> Merged:
    """Change the weights of a model in place, in float32, by a composition of adapters.

    Args:
        model: The model, or another module that has the targets.
        adapters: The adapters by name.
        composition: A composition of these adapters alone.
        keep: Keep copies of the weights, for an exact `undo`.

    Returns:
        What was merged. A warning says where the dtype rounds much of the change away.

    Raises:
        RoadError: for quantised or offloaded weights, weights that two modules share, and scales of
            0, which have no inverse. Nothing is changed then.
    """
    changes = list(_changes(model, adapters, composition))
    modules = {path: model.get_submodule(path) for path, _ in changes}
    for path in modules:
        _check_weights(model, path)
    originals: list[tuple[Tensor, Tensor]] = []
    if keep:
        for module in modules.values():
            originals += [(value, value.detach().clone()) for value in module.parameters()]
    else:
        for _, change in changes:
            if isinstance(change, Rotation):
                change.determinant()  # singular blocks are refused before anything changes
    rounding = dict.fromkeys(modules, 0.0)
    for path, change in changes:
        rounding[path] = max(rounding[path], _apply(modules[path], change))
    for module in modules.values():
        _note_change(module)
    originals += _replace_heads(model, adapters, composition)
    _warn(model, composition, rounding)
    undone_by = [] if keep else [(modules[path], change) for path, change in changes]
    return Merged(composition, rounding, originals, undone_by)


def _apply(module: nn.Module, change: Change) -> float:
    return _turn(module, change) if isinstance(change, Rotation) else _add(module, *change)


def _replace_heads(
    model: nn.Module, adapters: Mapping[str, RoadAdapter], composition: Composition
) -> Iterator[tuple[Tensor, Tensor]]:
    """Copy acting adapters' heads into the model; returns parameters and their values before."""
    for name, strength in composition.terms:
        adapter = adapters[name]
        for path, head in zip(adapter.head_paths, adapter.heads, strict=True) if strength else ():
            values = model.get_submodule(path).state_dict(keep_vars=True)
            before = [(value, value.detach().clone()) for value in values.values()]
            for key, value in head.state_dict().items():
                values[key].copy_(value)
            yield from before


def _note_change(module: nn.Module) -> None:
    """Have autograd refuse the backward of an earlier call, which would use the new weights."""
    increment_version([value for value in module.parameters() if not value.is_inference()])


def _changes(
    model: nn.Module, adapters: Mapping[str, RoadAdapter], composition: Composition
) -> Iterator[tuple[str, Change]]:
    """Changes by path, on the device of the weights: rotations first, then LoRA."""
    strengths = dict(composition.terms)
    acting = [adapters[name] for name in strengths]
    for members in by_layout(acting):
        layout, groups = members[0].layout, members[0].groups
        by_name = {adapter.name: adapter for adapter in members}
        whole = product(by_name, [(name, strengths[name]) for name in by_name])
        us = torch.split(whole.u, layout.blocks)
        vs = [None] * len(us) if whole.v is None else torch.split(whole.v, layout.blocks)
        for path, u, v, group in zip(layout.paths, us, vs, groups, strict=True):
            device = next(model.get_submodule(path).parameters()).device
            yield path, Rotation(u.to(device), None if v is None else v.to(device), group)
    for adapter in acting:
        for path, (a, b) in zip(adapter.layout.paths, adapter.lora(learning=False), strict=False):
            device = next(model.get_submodule(path).parameters()).device
            yield path, (a.to(device), b.to(device) * strengths[adapter.name])


def _turn(module: nn.Module, rotation: Rotation) -> float:
    """Make the weights R W and R b, in place; returns the rounding error, a share of the change."""
    weight: Tensor = module.weight.data  # type: ignore[assignment]
    bias = getattr(module, "bias", None)
    turn_weight = _turn_rows if isinstance(module, nn.Linear) else _turn_columns
    lost = turn_weight(weight, rotation)
    return lost if bias is None else max(lost, _turn_columns(bias.data[None], rotation))


def _turn_rows(weight: Float[Tensor, "outputs inputs"], rotation: Rotation) -> float:
    """A few pairs of matrix rows at a time."""
    half = rotation.group // 2
    grouped = weight.view(-1, 2, half, weight.shape[1])
    entries = [entry.view(-1, half, 1) for entry in rotation.entries()]
    pairs = max(1, _CHUNK // (2 * weight.shape[1]))
    few, many = min(half, pairs), max(1, pairs // half)
    rounding = _Rounding()
    # One buffer for all chunks: allocating costs as much as the work.
    scratch = torch.empty(min(many, len(grouped)), few, weight.shape[1], device=weight.device)
    for group in range(0, len(grouped), many):
        for start in range(0, half, few):
            groups, members = slice(group, group + many), slice(start, start + few)
            first, second = grouped[groups, :, members].unbind(1)
            r11, r12, r21, r22 = (entry[groups, members] for entry in entries)
            a, b = first.float(), second.float()  # the weights themselves where they are float32
            from_a = torch.mul(a, r21, out=scratch[: len(a), : a.shape[1]])
            a.mul_(r11).addcmul_(b, r12)
            b.mul_(r22).add_(from_a)
            rounding.store(first, a)
            rounding.store(second, b)
    return rounding.share


def _turn_columns(weight: Float[Tensor, "inputs outputs"], rotation: Rotation) -> float:
    """The same for Conv1D and embeddings, and for a bias as a matrix with one row."""
    rounding = _Rounding()
    for rows in torch.split(weight, max(1, _CHUNK // weight.shape[1])):
        rounding.store(rows, turn(rows, rotation.u, rotation.v, rotation.group))
    return rounding.share


def _add(module: nn.Module, a: Tensor, b: Tensor) -> float:
    """Make the weights W + B A in place, a few matrix rows at a time."""
    weight: Tensor = module.weight.data  # type: ignore[assignment]
    left, right = (b, a) if isinstance(module, nn.Linear) else (a.T, b.T)
    few, rounding = max(1, _CHUNK // weight.shape[1]), _Rounding()
    for rows, factor in zip(torch.split(weight, few), torch.split(left, few), strict=True):
        rounding.store(rows, torch.addmm(rows.float(), factor, right))
    return rounding.share


class _Rounding:
    """Measures how much of a change is lost to rounding in the weights' dtype."""

    def __init__(self) -> None:
        self._changed = self._error = 0.0

    def store(self, stored: Tensor, new: Tensor) -> None:
        """Write the float32 `new` over `stored`."""
        if stored.dtype == new.dtype:
            if stored.data_ptr() != new.data_ptr():
                stored.copy_(new)
        else:
            before = stored.float()
            stored.copy_(new)
            self._changed += float((new - before).square().sum())
            self._error += float((new - stored.float()).square().sum())

    @property
    def share(self) -> float:
        """‖rounded − exact‖ / ‖exact − before‖."""
        return float((self._error / self._changed) ** 0.5) if self._changed else 0.0


def _check_weights(model: nn.Module, path: str) -> None:
    module = model.get_submodule(path)
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.device.type == "meta":
            raise RoadError(
                f"{path} is offloaded: its weights are elsewhere; "
                "load the model whole, or serve this adapter unmerged"
            )
        if not parameter.dtype.is_floating_point or parameter.dtype.itemsize < 2:
            raise RoadError(
                f"{path} is quantised ({type(module).__name__}, {parameter.dtype}): rotating would "
                "quantise it once more, which loses more than an adapter changes; "
                "serve it unmerged, or load the base model in bfloat16 or float32 to merge"
            )
        for other, shared in model.named_parameters(remove_duplicate=False):
            if shared is parameter and other != f"{path}.{name}":
                raise RoadError(
                    f"{path} shares its weights with {other}, which would turn too: "
                    "serve this adapter unmerged"
                )


def _warn(model: nn.Module, composition: Composition, rounding: Mapping[str, float]) -> None:
    lost = {path: share for path, share in rounding.items() if share > _WARN}
    if lost:
        worst = max(lost, key=lambda path: lost[path])
        dtype = str(next(model.get_submodule(worst).parameters()).dtype).removeprefix("torch.")
        warnings.warn(
            f"merging {composition}: {dtype} rounds away over {100 * _WARN:.0f} % of the change "
            f"at {len(lost)} of {len(rounding)} targets ({100 * lost[worst]:.0f} % at {worst}): "
            "merge into float32 weights (model.float()), or serve it unmerged",
            stacklevel=4,
        )
