"""Fingerprints: whether a model's values, and what its modules do with them, are the same as before, however they were changed.

Versions of tensors do not tell: fused optimizers, `.data` and others write past them. So all values are read, once, in the order of
memory's own speed: the bits of a tensor as 32-bit integers times fixed random 64-bit numbers, summed modulo 2^64. Two tensors that
differ anywhere, in values or in their order, have the same sum with a chance of about 2^-32.
"""

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_COLUMNS = 1 << 16
_AT_ONCE = {
    "cpu": 1
}  # rows of _COLUMNS numbers: what a core's cache holds; elsewhere few launches count
_WEIGHTS = torch.randint(
    -(2**63), 2**63 - 1, (_COLUMNS,), dtype=torch.long, generator=torch.Generator().manual_seed(0)
)


def fingerprint_of(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """Of the names, shapes, types and values of tensors, whatever their device; None where some are not there (offloaded)."""
    told = hashlib.sha256()
    sums: dict[torch.device, list[Tensor]] = {}
    weights: dict[torch.device, Tensor] = {}
    for name, tensor in named:
        if tensor.device.type == "meta":
            return None
        told.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        if tensor.device not in weights:
            weights[tensor.device] = _WEIGHTS.to(tensor.device)
        sums.setdefault(tensor.device, []).append(_sums(tensor, weights[tensor.device]))
    for parts in sums.values():
        told.update(torch.cat(parts).cpu().numpy().tobytes())
    return told.hexdigest()


@torch.no_grad()
def _sums(tensor: Tensor, weights: Tensor) -> Tensor:
    """[rows]: of each _COLUMNS numbers of a tensor's bits."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    if len(flat) % 4 or flat.storage_offset() % 4:
        flat = functional.pad(flat, (0, -len(flat) % 4)).clone()
    numbers = flat.view(torch.int32)
    whole = len(numbers) // _COLUMNS
    rows = numbers[: whole * _COLUMNS].view(whole, _COLUMNS)
    sums = [
        (part * weights).sum(1) for part in torch.split(rows, _AT_ONCE.get(tensor.device.type, 64))
    ]
    rest = numbers[whole * _COLUMNS :]
    return torch.cat([*sums, (rest * weights[: len(rest)]).sum()[None]])


def behaviour_of(model: nn.Module) -> tuple[str, list[Any]]:
    """What else a forward pass depends on: the modules' kinds, modes and plain settings, as text, and what was hung on them.

    The second are the hooks and the functions that stand in place of a module's own, to be compared by identity.
    """
    config: Any = getattr(model, "config", None)
    said = [
        repr(config.to_dict()) if hasattr(config, "to_dict") else "",
        str(getattr(config, "_attn_implementation", "")),
    ]
    hung: list[Any] = []
    for path, module in model.named_modules():
        plain = {name: value for name, value in vars(module).items() if _is_plain(value)}
        said.append(f"{path} {type(module).__module__}.{type(module).__qualname__} {plain}")
        hung += [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        hung += [
            value
            for value in vars(module).values()
            if callable(value) and not isinstance(value, nn.Module)
        ]
    return hashlib.sha256("\n".join(said).encode()).hexdigest(), hung


def same_behaviour(one: tuple[str, list[Any]], other: tuple[str, list[Any]]) -> bool:
    """Whether two calls of `behaviour_of` say the same."""
    return (
        one[0] == other[0]
        and len(one[1]) == len(other[1])
        and all(mine is theirs for mine, theirs in zip(one[1], other[1], strict=True))
    )


def _is_plain(value: Any, depth: int = 3) -> bool:
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device)):
        return True
    if not depth:
        return False
    if isinstance(value, dict):
        return type(value) is dict and all(
            _is_plain(each, depth - 1) for pair in value.items() for each in pair
        )
    return type(value) in (list, tuple, set) and all(_is_plain(each, depth - 1) for each in value)
