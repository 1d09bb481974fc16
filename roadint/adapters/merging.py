"""Merging adapters into the weights, so that the model runs at no extra cost (paper section 3.2).

The weights become `R W` and `R b`, with LoRA `R W + B A`. A rotation mixes pairs of matrix rows, so
merging works in place and never makes a second matrix of the layer's size. Nothing waits for the
device while weights change: checks come before, and what rounding loses is read at the end.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from roadint.adapters.adapter import RoadAdapter
from roadint.adapters.products import by_layout, product
from roadint.adapters.weights import checked_weights, sharing_of, weights_of
from roadint.architecture.layers import uncompiled
from roadint.errors import RoadError
from roadint.grammar.composition import Composition
from roadint.rotation.kernels.weights import Sums, add_product_, turn_weight_
from roadint.rotation.rotation import Rotation

_WARN = 0.2  # share of the change that rounding may lose before a warning

LowRank = tuple[Float[Tensor, "rank inputs"], Float[Tensor, "outputs rank"], float]
"""A, B, and what their product is multiplied by."""
Change = Rotation | LowRank  # of the weights of one module


@dataclass
class Merged:
    """What was merged.

    Args:
        composition: The composition of adapters.
        rounding: By path, the error of rounding to the weights' dtype, as a share of the change.
        originals: Parameters, and copies of their values before.
        inverses: Modules and the changes that undo theirs, the last one first.
    """

    composition: Composition
    rounding: dict[str, float]
    originals: list[tuple[Tensor, Tensor]] = field(repr=False)
    inverses: list[tuple[nn.Module, Change]] = field(repr=False)

    @torch.no_grad()
    def undo(self) -> None:
        """Restore the weights.

        From copies exactly, else by inverse rotations, up to rounding in their dtype.
        """
        for module, change in reversed(self.inverses):
            weights = weights_of(module)
            _apply(module, weights, change)
            _note_change([weights])
        for parameter, before in self.originals:
            parameter.copy_(before)


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
        RoadError: for weights that are quantised, computed or offloaded to disk, weights that two
            modules share (a tied head's, too), and scales of 0, which have no inverse. Nothing is
            changed then. Whatever else ends it in the middle (memory, Ctrl-C) takes back what is
            merged so far; without copies a RoadError names the module in which it ended, which may
            be changed in part.
    """
    terms = {adapters[name]: strength for name, strength in composition.terms}
    paths = dict.fromkeys(path for adapter in terms for path in adapter.layout.paths)
    modules = {path: uncompiled(model.get_submodule(path)) for path in paths}
    weights = checked_weights(model, modules)
    devices = {path: values["weight"].device for path, values in weights.items()}
    wholes = [_product(members, terms) for members in by_layout(terms)]
    changes: list[tuple[str, Change]] = [*_rotations(wholes, devices), *_low_ranks(terms, devices)]
    heads = list(_heads(model, adapters, composition))
    kept = [value for values in weights.values() for value in values.values()] if keep else []
    originals = [(each, each.detach().clone()) for each in (*kept, *(value for value, _ in heads))]
    inverses: list[tuple[nn.Module, Change]] = []  # of every change, where there are no copies
    if not keep:
        undone = [(adapter, _inverse(adapter, whole)) for adapter, whole in wholes]
        opposite = {adapter: -strength for adapter, strength in terms.items()}
        inverting: list[tuple[str, Change]] = [
            *_rotations(undone, devices),
            *_low_ranks(opposite, devices),
        ]
        inverses = [(modules[path], change) for path, change in inverting]
    lost: list[tuple[str, Sums]] = []
    done = 0
    try:
        for path, change in changes:
            lost += [(path, sums) for sums in _apply(modules[path], weights[path], change)]
            done += 1
        for value, new in heads:
            value.copy_(new)
        _note_change(weights.values())
        rounding = _shares(paths, lost)
        _warn(model, composition, rounding)
    except BaseException as error:
        Merged(composition, {}, originals, inverses[:done]).undo()
        if done < len(changes) and not keep:
            raise RoadError(
                f"merging ended inside {changes[done][0]} ({type(error).__name__}), whose weights "
                "may be changed in part; all others are as before: expected a model that is loaded "
                "again, or keep=True, which has copies"
            ) from error
        raise
    return Merged(composition, rounding, originals, inverses)


def _product(
    members: Sequence[RoadAdapter], terms: Mapping[RoadAdapter, float]
) -> tuple[RoadAdapter, Rotation]:
    """An adapter of a layout, and the product of all that have it, at all its targets."""
    by_name = {adapter.name: adapter for adapter in members}
    return members[0], product(by_name, [(adapter.name, terms[adapter]) for adapter in members])


def _inverse(adapter: RoadAdapter, whole: Rotation) -> Rotation:
    """The inverse at all targets; a block that has none is counted in its target."""
    try:
        return whole.inverse()
    except RoadError:
        for part in _split(whole, adapter):
            part.determinant()
        raise


def _rotations(
    wholes: Iterable[tuple[RoadAdapter, Rotation]], devices: Mapping[str, torch.device]
) -> Iterator[tuple[str, Rotation]]:
    """Rotations by path, on the devices of the weights, to which they move as one."""
    for adapter, whole in wholes:
        split: dict[torch.device, list[Rotation]] = {}
        for target, path in enumerate(adapter.layout.paths):
            device = devices[path]
            if device not in split:
                split[device] = _split(whole, adapter, device)
            yield path, split[device][target]


def _split(
    whole: Rotation, adapter: RoadAdapter, device: torch.device | None = None
) -> list[Rotation]:
    """The rotations of an adapter's targets, from that of all."""
    blocks, groups = adapter.layout.blocks, adapter.groups
    us = torch.split(whole.u.to(device), blocks)
    vs = [None] * len(us) if whole.v is None else torch.split(whole.v.to(device), blocks)
    return [Rotation(u, v, group) for u, v, group in zip(us, vs, groups, strict=True)]


def _low_ranks(
    terms: Mapping[RoadAdapter, float], devices: Mapping[str, torch.device]
) -> Iterator[tuple[str, LowRank]]:
    """LoRA by path, on the devices of the weights."""
    for adapter, strength in terms.items():
        for path, (a, b) in zip(adapter.layout.paths, adapter.lora(learning=False), strict=False):
            yield path, (a.to(devices[path]), b.to(devices[path]), strength)


def _apply(module: nn.Module, weights: Mapping[str, Tensor], change: Change) -> list[Sums]:
    """Make the weights R W and R b, or W + B A, in place; returns what rounding loses."""
    values = {name: value.data for name, value in weights.items()}
    weight, bias, is_linear = values["weight"], values.get("bias"), isinstance(module, nn.Linear)
    if isinstance(change, Rotation):
        u, v, group = change.u, change.v, change.group
        # Conv1D and embeddings have outputs in columns, and so has a bias as a matrix of one row.
        lost = [turn_weight_(weight, u, v, group, 0 if is_linear else 1)]
        if bias is not None:
            lost.append(turn_weight_(bias[None], u, v, group, 1))
    else:
        a, b, strength = change
        lost = [add_product_(weight, *((b, a) if is_linear else (a.T, b.T)), strength)]
    return [sums for sums in lost if sums is not None]


def _shares(paths: Iterable[str], lost: Sequence[tuple[str, Sums]]) -> dict[str, float]:
    """By path the largest ‖rounded − exact‖ / ‖exact − before‖; one wait for each device."""
    rounding = dict.fromkeys(paths, 0.0)
    for device in {sums.device for _, sums in lost}:
        here = [(path, sums) for path, sums in lost if sums.device == device]
        numbers = torch.stack([sums for _, sums in here]).tolist()
        for (path, _), (changed, error) in zip(here, numbers, strict=True):
            share = (error / changed) ** 0.5 if changed else 0.0
            rounding[path] = max(rounding[path], share)
    return rounding


def _heads(
    model: nn.Module, adapters: Mapping[str, RoadAdapter], composition: Composition
) -> Iterator[tuple[Tensor, Tensor]]:
    """The model's parameters that acting adapters replace whole, and their new values.

    Raises:
        RoadError: for values that another module has too, and for those that are not in memory.
    """
    acting = [adapters[name] for name, strength in composition.terms if strength]
    sharing = sharing_of(model) if any(adapter.head_paths for adapter in acting) else {}
    for adapter in acting:
        for path, head in zip(adapter.head_paths, adapter.heads, strict=True):
            values = uncompiled(model.get_submodule(path)).state_dict(keep_vars=True)
            for key, new in head.state_dict().items():
                names = sharing.get(f"{path}.{key}", ())
                others = [name for name in names if not name.startswith(f"{path}.")]
                if others:
                    raise RoadError(
                        f"{path}, which the adapter has a copy of, shares its {key} with "
                        f"{others[0]}, which would change too: serve this adapter unmerged"
                    )
                if values[key].device.type == "meta":
                    raise RoadError(
                        f"{path} is offloaded: its weights are not in memory; load the model "
                        "whole, or serve this adapter unmerged"
                    )
                yield values[key], new


def _note_change(weights: Iterable[Mapping[str, Tensor]]) -> None:
    """Have autograd refuse the backward of an earlier call, which would use the new weights."""
    values = [value for of_module in weights for value in of_module.values()]
    increment_version([value for value in values if not value.is_inference()])


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
