"""Adapters into the weights: `R W` and `R b`, with LoRA `R W + B A`, so that the model runs as if nothing were there (paper 3.2).

A rotation mixes pairs of rows, so it takes two rows at a time and never a second matrix of the layer's size.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from roadint.adapters.adapter import RoadAdapter
from roadint.adapters.products import by_layout, product
from roadint.errors import RoadError
from roadint.grammar.composition import Composition
from roadint.rotation.kernels.torch import turn
from roadint.rotation.rotation import Rotation

_CHUNK = 1 << 20  # numbers that are worked on at a time: they stay in the processor's cache
_WARN = 0.2


@dataclass
class Merged:
    """What was merged. composition: of adapters; rounding: path → the error of the weights' dtype, as a share of the change."""

    composition: Composition
    rounding: dict[str, float]
    originals: list[tuple[Tensor, Tensor]] = field(repr=False)  # a parameter and what it was
    steps: list[tuple[nn.Module, Rotation | tuple[Tensor, Tensor]]] = field(
        repr=False
    )  # what turns back by the closed form

    @torch.no_grad()
    def undo(self) -> None:
        """Back to the weights before: exactly where they were kept, else by the inverse rotations, to the dtype's rounding."""
        for module, step in reversed(self.steps):
            if isinstance(step, Rotation):
                _turn(module, step.inverse())
            else:
                _add(module, step[0], -step[1])
        for parameter, before in self.originals:
            parameter.copy_(before)
        for module, _ in self.steps:
            _note_change(module)


@torch.no_grad()
def merge(
    model: nn.Module, adapters: Mapping[str, RoadAdapter], composition: Composition, keep: bool
) -> Merged:
    """Turn the weights of `model` in place, in float32, by a composition of adapters alone.

    keep: keep the weights as they were, for an exact `undo`. Warns where the dtype rounds much of the change away.
    Raises RoadError, and changes nothing, for quantised weights, weights that two modules share, and scales of 0 (no inverse).
    """
    steps = _steps(model, adapters, composition)
    paths = list(dict.fromkeys(path for path, _ in steps))
    for path in paths:
        _check_weights(model, path)
    if not keep:
        for _, step in steps:
            if isinstance(step, Rotation):
                step.determinant()  # singular blocks are refused before anything changes
    originals: list[tuple[Tensor, Tensor]] = []
    for path in paths if keep else ():
        originals += [
            (parameter, parameter.detach().clone())
            for parameter in model.get_submodule(path).parameters()
        ]
    rounding = dict.fromkeys(paths, 0.0)
    for path, step in steps:
        module = model.get_submodule(path)
        lost = _turn(module, step) if isinstance(step, Rotation) else _add(module, *step)
        rounding[path] = max(rounding[path], lost)
    for path in paths:
        _note_change(model.get_submodule(path))
    for name, strength in composition.terms:
        for path, head in (
            zip(adapters[name].head_paths, adapters[name].heads, strict=True) if strength else ()
        ):
            own = model.get_submodule(path).state_dict(keep_vars=True)
            originals += [(value, value.detach().clone()) for value in own.values()]
            for key, value in head.state_dict().items():
                own[key].copy_(value)
    _warn(model, composition, rounding)
    return Merged(
        composition,
        rounding,
        originals,
        [] if keep else [(model.get_submodule(path), step) for path, step in steps],
    )


def _note_change(module: nn.Module) -> None:
    """Tell autograd that the weights are others: a backward pass of an earlier call would use them otherwise, in silence."""
    increment_version([each for each in module.parameters() if not each.is_inference()])


def _steps(
    model: nn.Module, adapters: Mapping[str, RoadAdapter], composition: Composition
) -> list[tuple[str, Rotation | tuple[Tensor, Tensor]]]:
    """Rotations first, then what LoRA adds: (path, rotation or (A, B)), on the device of the weights."""
    turning: list[tuple[str, Rotation | tuple[Tensor, Tensor]]] = []
    adding: list[tuple[str, Rotation | tuple[Tensor, Tensor]]] = []
    strengths = dict(composition.terms)
    for members in by_layout(adapters[name] for name in strengths):
        layout, groups = members[0].layout, members[0].groups
        whole = product(
            {each.name: each for each in members},
            [(each.name, strengths[each.name]) for each in members],
        )
        us = torch.split(whole.u, layout.blocks)
        vs = [None] * len(us) if whole.v is None else torch.split(whole.v, layout.blocks)
        for path, u, v, group in zip(layout.paths, us, vs, groups, strict=True):
            device = next(model.get_submodule(path).parameters()).device
            turning.append(
                (path, Rotation(u.to(device), None if v is None else v.to(device), group))
            )
        for each in members:
            for path, (a, b) in zip(layout.paths, each.lora(learning=False), strict=False):
                device = next(model.get_submodule(path).parameters()).device
                adding.append((path, (a.to(device), b.to(device) * strengths[each.name])))
    return turning + adding


def _turn(module: nn.Module, rotation: Rotation) -> float:
    """R W and R b in place; returns the error of rounding as a share of the change."""
    weight: Tensor = module.weight.data  # type: ignore[assignment]
    bias = getattr(module, "bias", None)
    lost = (
        _turn_rows(weight, rotation)
        if isinstance(module, nn.Linear)
        else _turn_columns(weight, rotation)
    )
    return lost if bias is None else max(lost, _turn_columns(bias.data[None], rotation))


def _turn_rows(weight: Tensor, rotation: Rotation) -> float:
    """weight: [outputs, inputs], a few pairs of rows at a time."""
    half = rotation.group // 2
    grouped = weight.view(-1, 2, half, weight.shape[1])
    entries = [each.view(-1, half, 1) for each in rotation.entries()]
    pairs = max(1, _CHUNK // (2 * weight.shape[1]))
    few, many = min(half, pairs), max(1, pairs // half)
    rounding = _Rounding()
    scratch = torch.empty(
        min(many, len(grouped)), few, weight.shape[1], device=weight.device
    )  # fresh memory is dear
    for group in range(0, len(grouped), many):
        for place in range(0, half, few):
            at = slice(group, group + many), slice(None), slice(place, place + few)
            (first, second), (r11, r12, r21, r22) = (
                grouped[at].unbind(1),
                [each[at[0], at[2]] for each in entries],
            )
            a, b = first.float(), second.float()  # the weights themselves where they are float32
            from_a = torch.mul(a, r21, out=scratch[: len(a), : a.shape[1]])
            a.mul_(r11).addcmul_(b, r12)
            b.mul_(r22).add_(from_a)
            rounding.store(first, a)
            rounding.store(second, b)
    return rounding.share


def _turn_columns(weight: Tensor, rotation: Rotation) -> float:
    """weight: [inputs, outputs], as in Conv1D, embeddings, and a bias of one row."""
    rounding = _Rounding()
    for rows in torch.split(weight, max(1, _CHUNK // weight.shape[1])):
        rounding.store(rows, turn(rows, rotation.u, rotation.v, rotation.group))
    return rounding.share


def _add(module: nn.Module, a: Tensor, b: Tensor) -> float:
    """W + B A in place, a few rows at a time."""
    weight: Tensor = module.weight.data  # type: ignore[assignment]
    left, right = (b, a) if isinstance(module, nn.Linear) else (a.T, b.T)
    few, rounding = max(1, _CHUNK // weight.shape[1]), _Rounding()
    for rows, own in zip(torch.split(weight, few), torch.split(left, few), strict=True):
        rounding.store(rows, torch.addmm(rows.float(), own, right))
    return rounding.share


class _Rounding:
    """How much of a change the dtype of the weights loses."""

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
        kind = type(module).__name__
        if parameter.device.type == "meta":
            raise RoadError(
                f"{path} is offloaded: its weights are elsewhere; load the model whole, or serve this adapter unmerged"
            )
        if not parameter.dtype.is_floating_point or parameter.dtype.itemsize < 2:
            raise RoadError(
                f"{path} is quantised ({kind}, {parameter.dtype}): rotating would quantise it once more, which loses more than an "
                "adapter changes; serve it unmerged, or load the base model in bfloat16 or float32 to merge"
            )
        shared = [
            each
            for each, other in model.named_parameters(remove_duplicate=False)
            if other is parameter and each != f"{path}.{name}"
        ]
        if shared:
            raise RoadError(
                f"{path} shares its weights with {shared[0]}, which would turn too: serve this adapter unmerged"
            )


def _warn(model: nn.Module, composition: Composition, rounding: Mapping[str, float]) -> None:
    lost = {path: share for path, share in rounding.items() if share > _WARN}
    if lost:
        worst = max(lost, key=lambda path: lost[path])
        dtype = str(next(model.get_submodule(worst).parameters()).dtype).removeprefix("torch.")
        warnings.warn(
            f"merging {composition}: {dtype} rounds away over {100 * _WARN:.0f} % of the change at {len(lost)} of {len(rounding)} "
            f"targets ({100 * lost[worst]:.0f} % at {worst}): merge into float32 weights (model.float()), or serve it unmerged",
            stacklevel=4,
        )
