"""A device without a GPU: tensors that say they are on cuda:0, hold real values, and refuse to be mixed with the CPU's.

torch's own code for devices needs a build with CUDA, so below Python these tensors are of the device "meta", whose kernels
never run: every operation comes here, is checked as CUDA would check it, and runs on the values inside. What would make the
host wait for a GPU is counted.
"""

import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_iter, tree_map_only

DEVICE = torch.device("cuda", 0)
aten = torch.ops.aten

# What reads a value on the host, or makes a tensor whose size only the device knows.
WAITING = {
    aten._local_scalar_dense,
    aten._unique,
    aten._unique2,
    aten.bincount,
    aten.equal,
    aten.is_nonzero,
    aten.masked_select,
    aten.nonzero,
    aten.unique_consecutive,
    aten.unique_dim,
}
# What moves values between devices, or only asks about them.
MOVING = {aten._to_copy, aten.copy_, aten._has_compatible_shallow_copy_type, aten.is_same_size}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}


class OnDevice(Tensor):
    """A tensor on the device."""

    values: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: Tensor, requires_grad: bool = False) -> "OnDevice":
        values = values.values if isinstance(values, OnDevice) else values  # as accelerate copies
        made: OnDevice = Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device="meta",
        )
        made.values = values
        return made

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None):
        return run(operation, args, kwargs or {})

    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)
    is_cpu = is_meta = property(lambda self: False)

    def get_device(self) -> int:
        return 0

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, **arguments: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy: copy it to host memory")

    def __array__(self, dtype: Any = None) -> Any:
        return self.numpy()

    def pin_memory(self, device: Any = None) -> Tensor:
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors")

    def is_pinned(self, device: Any = None) -> bool:
        return False

    def record_stream(self, stream: Any) -> None:
        pass

    def untyped_storage(self) -> Any:
        return self.values.untyped_storage()

    def data_ptr(self) -> int:
        return self.values.data_ptr()

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({self.values!r})"

    def __format__(self, form: str) -> str:
        return format(self.item() if self.ndim == 0 else repr(self), form)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            copied: Tensor = OnDevice(self.values.clone()).requires_grad_(self.requires_grad)
            memo[id(self)] = torch.nn.Parameter(copied) if _is_parameter(self) else copied
            memo[id(self)].requires_grad_(self.requires_grad)
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.values.__reduce_ex__(protocol)  # a file's tensors are those of the CPU

    # A module's `.to` swaps such tensors, in the place of setting `.data`.
    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["values"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *_: Any) -> "OnDevice":
        return OnDevice(inner["values"])


class Waits(list[str]):
    """What made the host wait, each with where."""

    def add(self, what: str) -> None:
        if not any(self is waits for waits in _COUNTING):
            raise AssertionError("not counting")
        self.append(what)


_COUNTING: list[Waits] = []
_META: list[bool] = []  # not empty while a function runs that was asked for real meta tensors


@contextmanager
def waits() -> Iterator[Waits]:
    """Counts what makes the host wait for the device."""
    found = Waits()
    _COUNTING.append(found)
    try:
        yield found
    finally:
        _COUNTING.pop()


def waited(what: str) -> None:
    """Note that the host waited here."""
    if not _COUNTING:
        return
    frames = [frame for frame in traceback.extract_stack() if "/torch/" not in frame.filename]
    where = next((f for f in reversed(frames) if f.filename != __file__), frames[-1])
    for counting in _COUNTING:
        counting.add(f"{what} at {where.filename}:{where.lineno}")


def run(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An operation on tensors of the device, of the CPU, or both where CUDA allows it."""
    device = kwargs.get("device")
    flat = list(tree_iter((args, kwargs)))
    here = any(isinstance(value, OnDevice) for value in flat)
    asked = None if device is None else _is_here(torch.device(device))
    if not here and not asked:
        return operation(*args, **kwargs)
    _check(operation, args, kwargs, flat)
    _count(operation, args, kwargs, asked)
    inner_args, inner_kwargs = tree_map_only(OnDevice, lambda t: t.values, (args, kwargs))
    if device is not None:
        inner_kwargs["device"] = torch.device("cpu")
        inner_kwargs.pop("pin_memory", None)
    with torch._C._PreserveDispatchKeyGuard():
        for lazy in (torch._C.DispatchKey.Conjugate, torch._C.DispatchKey.Negative):
            torch._C._dispatch_tls_set_dispatch_key_excluded(lazy, False)  # the values' own
        result = operation(*inner_args, **inner_kwargs)
    stays = here if asked is None else asked
    mutates_cpu = operation.overloadpacket in MOVING and not isinstance(args[0], OnDevice)
    if not stays or (mutates_cpu and operation.overloadpacket is aten.copy_):
        return args[0] if operation.overloadpacket is aten.copy_ else result
    if operation.overloadpacket is aten._to_copy and result is inner_args[0]:
        result = result.clone()
    wrapped = tree_map_only(Tensor, OnDevice, result)
    return return_and_correct_aliasing(operation, args, kwargs, wrapped)


def _is_here(device: torch.device) -> bool:
    """Whether a device is this one: torch's own code says "meta" where it means that of a tensor."""
    return device.type == "cuda" or (device.type == "meta" and not _META)


def _check(operation: Any, args: Any, kwargs: Any, flat: list[Any]) -> None:
    """Refuse what CUDA refuses."""
    packet = operation.overloadpacket
    empty = any(torch.is_tensor(value) and value.device.type == "meta" for value in flat)
    assert not empty, f"{operation}: a tensor without values"
    if packet in MOVING:
        return
    if packet in INDEXING:
        if not isinstance(args[0], OnDevice):
            raise RuntimeError("indices should be on the CPU, or on the device of the tensor")
        flat = [args[0], *(value for value in args[2:3] if torch.is_tensor(value) and value.ndim)]
    tensors = [value for value in flat if torch.is_tensor(value)]
    scalars = torch.Tag.pointwise in operation.tags or packet in (aten.fill_, aten.masked_fill_)
    strangers = [
        t for t in tensors if not isinstance(t, OnDevice) and not (scalars and t.ndim == 0)
    ]
    written = args[0] if operation._schema.is_mutable and args else None
    out = [kwargs[name] for name in ("out",) if torch.is_tensor(kwargs.get(name))]
    strangers += [t for t in (written, *out) if torch.is_tensor(t) and not isinstance(t, OnDevice)]
    if strangers:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"cuda:0 and cpu! ({operation}, a tensor {tuple(strangers[0].shape)} on the CPU)"
        )


def _count(operation: Any, args: Any, kwargs: Any, asked: bool | None) -> None:
    """Count what the host waits for."""
    packet = operation.overloadpacket
    first = args[0] if args else None
    if packet in WAITING:
        waited(packet.__name__)
    elif packet is aten.repeat_interleave and kwargs.get("output_size") is None:
        waited("repeat_interleave")
    elif packet in INDEXING:
        masks = (t for t in args[1] if isinstance(t, OnDevice))
        if any(mask.dtype in (torch.bool, torch.uint8) for mask in masks):
            waited("indexing with a mask")
    elif packet is aten._to_copy and asked is not None:
        if isinstance(first, OnDevice) != asked and not kwargs.get("non_blocking"):
            waited("a copy to the device" if asked else "a copy to the CPU")
    elif packet is aten.copy_:
        ahead = args[1].ndim == 0 or (args[2:] and args[2])
        if isinstance(first, OnDevice) != isinstance(args[1], OnDevice) and not ahead:
            waited("copy_ between devices")


class _Dispatching(TorchDispatchMode):
    """Makes tensors of the device where only an argument says so."""

    def __enter__(self) -> Any:
        torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor`'s values come as the CPU's
        return super().__enter__()

    def __exit__(self, *details: Any) -> None:
        torch._C._set_only_lift_cpu_tensors(False)
        super().__exit__(*details)

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None):
        return run(operation, args, kwargs or {})


class _Naming(TorchFunctionMode):
    """Gives a device its index, without which torch asks a CUDA build for it."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        kwargs = kwargs or {}
        if function is Tensor.cuda:
            function, args = Tensor.to, (args[0], DEVICE)
        if function is Tensor.pin_memory and not isinstance(args[0], OnDevice):
            return args[0].clone()
        if function is Tensor.to:
            args = tuple(map(_indexed, args))
            if isinstance(args[0], OnDevice) and _is_idle(args, kwargs):
                return args[0]
        if function in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], OnDevice):
            args = (args[0], _as_tensors(args[1]), *args[2:])
        if function is Tensor.new_tensor and isinstance(args[0], OnDevice):
            function, args, kwargs = torch.tensor, args[1:], {"device": DEVICE, **kwargs}
            kwargs.setdefault("dtype", args[0].dtype if torch.is_tensor(args[0]) else None)
        if "device" in kwargs:
            kwargs = {**kwargs, "device": _indexed(kwargs["device"])}
        if not any(map(_is_meta, tree_iter((args, kwargs)))):
            return function(*args, **kwargs)
        _META.append(True)
        try:
            return function(*args, **kwargs)
        finally:
            _META.pop()


def _is_idle(args: Any, kwargs: Any) -> bool:
    """Whether `.to` changes nothing, so that torch returns the tensor itself."""
    named = [*args[1:], *kwargs.values()]
    device = [value for value in named if isinstance(value, torch.device)]
    dtypes = [value for value in named if isinstance(value, torch.dtype)]
    others = [value for value in named if torch.is_tensor(value)]
    device += [other.device for other in others]
    dtypes += [other.dtype for other in others]
    return (
        not kwargs.get("copy")
        and all(value == DEVICE for value in device)
        and all(value == args[0].dtype for value in dtypes)
    )


def _indexed(value: Any) -> Any:
    if isinstance(value, str) and value.partition(":")[0] in ("cuda", "cpu"):
        value = torch.device(value)
    return DEVICE if isinstance(value, torch.device) and value.type == "cuda" else value


def _as_tensors(index: Any) -> Any:
    """An index whose lists are tensors: torch would make them on the device that it knows of."""
    if isinstance(index, tuple):
        return tuple(map(_as_tensors, index))
    return torch.tensor(index) if isinstance(index, (list, np.ndarray)) else index


def _is_meta(value: Any) -> bool:
    if torch.is_tensor(value):
        return value.device.type == "meta"
    return isinstance(value, (str, torch.device)) and str(value) == "meta"


def _is_parameter(tensor: Tensor) -> bool:
    return isinstance(tensor, torch.nn.Parameter)


def on_cpu(value: Any) -> Any:
    """Tensors in any structure, as the CPU has them."""
    return tree_map_only(Tensor, lambda tensor: _plain(tensor.detach()), value)


def _plain(tensor: Tensor) -> Tensor:
    return tensor.values if isinstance(tensor, OnDevice) else tensor.cpu()


@contextmanager
def stand_in() -> Iterator[torch.device]:
    """`other_device`, for a part of a test."""
    with pytest.MonkeyPatch.context() as patch, other_device(patch) as device:
        yield device


@contextmanager
def other_device(patch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Within, "cuda" is the device: the tensors that are made, and what `torch.cuda` says."""
    run_thread = threading.Thread.run

    def run_here(thread: threading.Thread) -> None:
        with _Dispatching(), _Naming():
            run_thread(thread)

    move = torch.nn.Module.to

    def to_here(module: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
        device, dtype, *_ = torch._C._nn._parse_to(*map(_indexed, args), **kwargs)
        tensors = [*module.parameters(), *module.buffers()]
        is_there = all(isinstance(tensor, OnDevice) for tensor in tensors)
        if device is not None and device.type == "cuda" and dtype is None and is_there:
            return module  # torch would swap every tensor for itself, which may be held elsewhere
        return move(module, *args, **kwargs)

    load = torch.load

    def load_here(*args: Any, map_location: Any = None, **kwargs: Any) -> Any:
        on_device = map_location is not None and torch.device(map_location).type == "cuda"
        loaded = load(*args, map_location="cpu" if on_device else map_location, **kwargs)
        return tree_map_only(Tensor, lambda t: t.to(DEVICE), loaded) if on_device else loaded

    patch.setattr(torch, "load", load_here)  # storages know no device but real ones
    patch.setattr(torch.nn.Module, "to", to_here)
    patch.setattr(threading.Thread, "run", run_here)  # modes are a thread's own
    for module, answers in _ANSWERS.items():
        for name, answer in answers.items():
            patch.setattr(module, name, lambda *_, answer=answer, **__: answer, raising=False)
    for name, replacement in _REPLACEMENTS.items():
        patch.setattr(torch.cuda, name, replacement)
    with _Dispatching(), _Naming():
        yield DEVICE


class _Stream:
    """A stream of a device that is never behind."""

    device = DEVICE

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def wait_stream(self, stream: Any) -> None:
        pass

    def wait_event(self, event: Any) -> None:
        pass

    def record_event(self, event: Any = None) -> Any:
        return SimpleNamespace(wait=lambda *_: None, query=lambda: True)

    def synchronize(self) -> None:
        waited("synchronize")

    def is_capturing(self) -> bool:
        return False


class _Current(nullcontext[None]):
    """A context in which the only device is the current one; torch asks for its class."""


_REPLACEMENTS: dict[str, Any] = {
    "Stream": _Stream,
    "stream": lambda stream: nullcontext(),
    "current_stream": _Stream,
    "device": _Current,
    "synchronize": lambda *_: waited("synchronize"),
}
_MEMORY = 10**9
_PROPERTIES = SimpleNamespace(
    name="a device for tests", total_memory=_MEMORY, major=8, minor=0, multi_processor_count=1
)
_ANSWERS: dict[Any, dict[str, Any]] = {
    torch.cuda: {
        "_lazy_init": None,
        "is_available": True,
        "is_initialized": True,
        "device_count": 1,
        "current_device": 0,
        "set_device": None,
        "empty_cache": None,
        "get_device_capability": (8, 0),
        "get_device_name": _PROPERTIES.name,
        "get_device_properties": _PROPERTIES,
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
        "get_rng_state_all": [torch.zeros(16, dtype=torch.uint8)],
        "set_rng_state": None,
        "set_rng_state_all": None,
        "is_bf16_supported": True,
        "is_current_stream_capturing": False,
        "manual_seed": None,
        "manual_seed_all": None,
        "max_memory_allocated": _MEMORY // 2,
        "mem_get_info": (_MEMORY // 2, _MEMORY),
        "memory_allocated": _MEMORY // 4,
        "memory_reserved": _MEMORY // 2,
        "reset_peak_memory_stats": None,
    },
    torch.cuda.random: {
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": None,
    },
    torch.accelerator: {
        "is_available": True,
        "current_accelerator": DEVICE,
        "current_stream": _Stream(),
    },
}
