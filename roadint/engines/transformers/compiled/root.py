"""The root of a graph view: prepares each pass outside of the graph, and keeps static caches."""

import inspect
import threading
import types
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import StaticCache
from transformers.cache_utils import StaticLayer, StaticSlidingWindowLayer

_KEPT = 2  # static caches: they are large

BeforePass = Callable[[tuple[Any, ...], dict[str, Any]], None]


class Keeping:
    """What the root of a view needs beside its model.

    Args:
        plain: The root's forward pass without a preparation, which is what is compiled.
        before_pass: Called with the arguments of every forward pass, outside of the graph.
        settings: Those of torch.compile where a call has none of its own.

    Attributes:
        keeps_caches: Whether `generate` may use the cache of an earlier call.
    """

    def __init__(
        self, plain: Callable[..., Any], before_pass: BeforePass, settings: dict[str, Any]
    ) -> None:
        self.plain, self.before_pass, self.settings = plain, before_pass, settings
        self.keeps_caches = True
        self._compiled: dict[str, Callable[..., Any]] = {}
        self._caches: OrderedDict[tuple[Any, ...], StaticCache] = OrderedDict()

    def compiled(self, settings: dict[str, Any]) -> Callable[..., Any]:
        """The forward pass: prepared, then compiled, once for equal settings."""
        _have_graphs()
        key = repr(sorted(settings.items()))
        if key not in self._compiled:
            self._compiled[key] = torch.compile(self.plain, **settings)
        run = self._compiled[key]

        def call(*args: Any, **kwargs: Any) -> Any:
            self.before_pass(args, kwargs)
            return run(*args, **kwargs)

        return call

    def cache_for(self, made: StaticCache, *kind: Any) -> StaticCache:
        """The cache of an earlier call of the same kind and length, emptied; else `made`.

        Args:
            made: A new cache.
            kind: What a cache must have in common with this one to serve in its place.
        """
        kept: StaticCache | None = self._caches.pop(kind, None)
        if kept is None or _lengths(kept) != _lengths(made) or _moved(kept):
            if _can_empty(made):
                self._caches[kind] = made
                while len(self._caches) > _KEPT:
                    self._caches.popitem(last=False)
            return made
        self._caches[kind] = kept
        kept.reset()  # type: ignore[no-untyped-call]
        for layer in kept.layers:
            if hasattr(layer, "cumulative_length_int"):  # `reset` leaves it
                layer.cumulative_length_int = 0
        return kept


def _have_graphs() -> None:
    """Let this thread capture CUDA graphs: some versions of torch know the main thread's alone."""
    if not torch.cuda.is_available():
        return
    from torch._inductor.cudagraph_trees import local

    found: Any = local
    for name, make in _OF_THREAD.items():
        if not (hasattr(found, name) or torch._C._is_key_in_tls(name)):
            setattr(found, name, make())


# What torch._inductor.cudagraph_trees keeps for a thread.
_OF_THREAD: dict[str, Callable[[], Any]] = {
    "tree_manager_containers": dict,
    "tree_manager_locks": partial(defaultdict, threading.Lock),
}


def _lengths(cache: StaticCache) -> list[Any]:
    return [(type(layer), getattr(layer, "max_cache_len", None)) for layer in cache.layers]


def _moved(cache: StaticCache) -> bool:
    """Whether its numbers lie elsewhere than at first, as beams leave them: no graph has these."""
    layers: list[Any] = cache.layers
    return any(
        layer.is_initialized and not hasattr(layer.keys, "_dynamo_static_input_type")
        for layer in layers
    )


def _numbers(model: Any) -> tuple[Any, ...]:
    """What the numbers in a cache that a model fills are like, and where they are."""
    device = model.device
    autocast = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type)
    # What inference mode makes can't be written outside of it.
    return device, model.dtype, autocast, torch.is_inference_mode_enabled()


def _can_empty(cache: StaticCache) -> bool:
    """Whether all state of a cache is known: recurrent layers have more."""
    known = (StaticLayer, StaticSlidingWindowLayer)
    return type(cache) is StaticCache and all(type(layer) in known for layer in cache.layers)


def make_root(copy: nn.Module, before_pass: BeforePass, settings: dict[str, Any]) -> Keeping:
    """Give a view's copy of a transformers model the class of a root."""
    kind = type(copy)
    keeping = Keeping(types.MethodType(kind.__call__, copy), before_pass, settings)
    vars(copy)["_keeping"] = keeping
    copy.__class__ = _rooted(kind)
    return keeping


_ROOTED: dict[type[nn.Module], type[nn.Module]] = {}


def _rooted(kind: type[nn.Module]) -> type[nn.Module]:
    if kind in _ROOTED:
        return _ROOTED[kind]

    class Root(kind):  # type: ignore[misc, valid-type]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            self._keeping.before_pass(args, kwargs)
            return super().__call__(*args, **kwargs)

        def get_compiled_call(self, compile_config: Any) -> Callable[..., Any]:
            """transformers' compiled call, which comes after what prepares the pass."""
            settings = self._keeping.settings
            if compile_config is not None:  # else the cache is the caller's own
                settings = compile_config.to_dict()
            call: Callable[..., Any] = self._keeping.compiled(settings)
            return call

        def _prepare_static_cache(self, *args: Any, **kwargs: Any) -> Any:
            """The cache of an earlier call, emptied: a CUDA graph has its addresses."""
            self.__dict__.pop("_cache", None)  # some versions keep one, also one that was returned
            made = super()._prepare_static_cache(*args, **kwargs)
            inspected = inspect.signature(super()._prepare_static_cache).bind(*args, **kwargs)
            name = inspected.arguments.get("cache_implementation")
            if name != "static" or not self._keeping.keeps_caches:
                return made
            rows = inspected.arguments.get("batch_size")
            return self._keeping.cache_for(made, rows, *_numbers(self))

    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        setattr(Root, name, getattr(kind, name))
    _ROOTED[kind] = Root
    return Root
