"""Fingerprints of models: whether a model is still the same, in its values and in what it does.

The version counters of tensors do not tell, since fused optimizers, `.data` and others bypass them.
So all values are read once, at the speed of memory: the bits of a tensor as 32-bit integers times
fixed random 64-bit numbers, summed modulo 2^64. Two tensors that differ in values or in their order
have the same sum with a probability of about 2^-32.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor, nn
from torch.nn import functional

_COLUMNS = 1 << 16
# How many matrix rows of _COLUMNS numbers are multiplied at once: on a CPU what a core's cache
# holds, elsewhere many, so that few kernels are launched.
_CPU_ROWS, _DEVICE_ROWS = 1, 64
_WEIGHTS = torch.randint(
    -(2**63), 2**63 - 1, (_COLUMNS,), dtype=torch.long, generator=torch.Generator().manual_seed(0)
)


def fingerprint_of(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """A digest of tensors: of their names, shapes, types and values, whatever their device.

    Args:
        named: Names and tensors, such as `model.named_parameters()`.

    Returns:
        The digest, in hexadecimal; None where some values are offloaded.

    Examples:
        >>> zeros = fingerprint_of([("w", torch.zeros(3))])
        >>> zeros == fingerprint_of([("w", torch.zeros(3))])
        True
        >>> zeros == fingerprint_of([("w", torch.tensor([0.0, 0.0, 1e-30]))])
        False
    """
    digest = hashlib.sha256()
    sums: dict[torch.device, list[Tensor]] = {}
    weights: dict[torch.device, Tensor] = {}
    for name, tensor in named:
        if tensor.device.type == "meta":
            return None
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        if tensor.device not in weights:
            weights[tensor.device] = _WEIGHTS.to(tensor.device)
        sums.setdefault(tensor.device, []).append(_sums(tensor, weights[tensor.device]))
    for parts in sums.values():
        digest.update(torch.cat(parts).cpu().numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def _sums(tensor: Shaped[Tensor, "..."], weights: Int[Tensor, " columns"]) -> Int[Tensor, " sums"]:
    """The sums of runs of _COLUMNS numbers of a tensor's bits."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    if len(flat) % 4 or flat.storage_offset() % 4:
        flat = functional.pad(flat, (0, -len(flat) % 4)).clone()
    numbers = flat.view(torch.int32)
    whole = len(numbers) // _COLUMNS
    rows = numbers[: whole * _COLUMNS].view(whole, _COLUMNS)
    at_once = _CPU_ROWS if tensor.device.type == "cpu" else _DEVICE_ROWS
    sums = [(part * weights).sum(1) for part in torch.split(rows, at_once)]
    rest = numbers[whole * _COLUMNS :]
    return torch.cat([*sums, (rest * weights[: len(rest)]).sum()[None]])


@dataclass(frozen=True)
class ModelState:
    """Everything that a model's forward pass depends on.

    Attributes:
        values: The fingerprint of parameters and buffers; None where some are offloaded.
        settings: A digest of the modules' kinds, modes and plain settings.
        functions: The hooks, and functions that replace methods of modules.
    """

    values: str | None
    settings: str
    functions: tuple[Any, ...]

    @classmethod
    def of(cls, model: nn.Module) -> "ModelState":
        """The state of a model now."""
        return cls(_values_of(model), _settings_of(model), _functions_of(model))

    def is_of(self, model: nn.Module) -> bool:
        """Whether a model is in this state now; False where some values are offloaded."""
        functions = _functions_of(model)
        return (
            self.values is not None
            and self.settings == _settings_of(model)
            and len(self.functions) == len(functions)
            and all(a is b for a, b in zip(self.functions, functions, strict=True))
            and self.values == _values_of(model)  # the slow one comes last
        )


def _values_of(model: nn.Module) -> str | None:
    return fingerprint_of([*model.named_parameters(), *model.named_buffers()])


def _settings_of(model: nn.Module) -> str:
    config: Any = getattr(model, "config", None)
    lines = [
        repr(config.to_dict()) if hasattr(config, "to_dict") else "",
        str(getattr(config, "_attn_implementation", "")),
    ]
    for path, module in model.named_modules():
        plain = {name: value for name, value in vars(module).items() if _is_plain(value)}
        lines.append(f"{path} {type(module).__module__}.{type(module).__qualname__} {plain}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _functions_of(model: nn.Module) -> tuple[Any, ...]:
    functions: list[Any] = []
    for module in model.modules():
        functions += [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        functions += [
            value
            for value in vars(module).values()
            if callable(value) and not isinstance(value, nn.Module)
        ]
    return tuple(functions)


def _is_plain(value: Any, depth: int = 3) -> bool:
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device)):
        return True
    if not depth:
        return False
    if type(value) is dict:
        return all(_is_plain(part, depth - 1) for pair in value.items() for part in pair)
    return type(value) in (list, tuple, set) and all(_is_plain(part, depth - 1) for part in value)
