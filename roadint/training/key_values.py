"""The keys and values of prefixes: recorded from a model's own forward, kept as a row of numbers a token, given back as a Cache."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from roadint.architecture.layers import text_config
from roadint.architecture.properties import cache_name
from roadint.engines.transformers.partial import Enough, run_until_enough


class UnknownCacheError(Exception):
    """The model keeps something else than keys and values from token to token."""


class Recorder:
    """The keys and values [rows, heads, columns, width] that a pass adds, layer by layer; the topmost layer's end the pass."""

    def __init__(self, layers: int) -> None:
        self.added: list[tuple[Tensor, Tensor] | None] = [None] * layers

    def note(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Keep them."""
        self.added[layer] = keys, values
        if layer == len(self.added) - 1:
            raise Enough


class _Layer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer's prefix. It is joined with what a forward adds, but never grows itself: a training step forgets its tokens."""

    def __init__(
        self,
        index: int,
        length: int,
        keys: Tensor | None,
        values: Tensor | None,
        is_sliding: bool,
        recorder: Recorder | None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.index, self.length, self.keys, self.values = index, length, keys, values
        self.is_sliding, self.recorder = is_sliding, recorder

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if self.recorder is not None:
            self.recorder.note(self.index, key_states, value_states)
        if self.keys is None or self.values is None:
            return key_states, value_states
        return torch.cat([self.keys, key_states], dim=-2), torch.cat(
            [self.values, value_states], dim=-2
        )

    def get_seq_length(self, *args: Any) -> int:
        return self.length

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        # Older transformers give the positions instead of their number. A sliding layer masks, but drops nothing.
        added = query_length if isinstance(query_length, int) else len(query_length)
        return self.length + added, 0


@dataclass(frozen=True)
class Layout:
    """How the keys and values of one token lie in a row of numbers: layer by layer, first keys, then values.

    shapes: of each layer (heads, key width, value width), or None where a layer's are not kept. sliding: which have a window.
    """

    shapes: tuple[tuple[int, int, int] | None, ...]
    sliding: tuple[bool, ...]
    dtype: torch.dtype

    @property
    def width(self) -> int:
        """Numbers a token."""
        return sum(heads * (key + value) for heads, key, value in filter(None, self.shapes))

    def above(self, skipped: int) -> "Layout":
        """The layout without the lowest `skipped` layers; its numbers are the last ones of a row of this layout."""
        return replace(self, shapes=(*[None] * skipped, *self.shapes[skipped:]))

    def past(self, prefix: Tensor, recorder: Recorder | None = None) -> Cache:
        """A Cache that holds `prefix` [rows, columns, at least `width`], in its last numbers, and forgets what is added to it."""
        layers: list[Any] = []
        start = prefix.shape[-1] - self.width
        for index, (shape, sliding) in enumerate(zip(self.shapes, self.sliding, strict=True)):
            keys = values = None
            if shape is not None:
                heads, key, value = shape
                both = prefix.narrow(-1, start, heads * (key + value)).tensor_split(
                    [heads * key], dim=-1
                )
                keys, values = (
                    part.reshape(*part.shape[:-1], heads, each).transpose(1, 2)
                    for part, each in zip(both, (key, value), strict=True)
                )
                start += heads * (key + value)
            layers.append(_Layer(index, prefix.shape[1], keys, values, sliding, recorder))
        return Cache(layers=layers)

    def joined(self, recorder: Recorder) -> Tensor:
        """What a pass has added, [rows, columns, width]."""
        pairs = [
            pair
            for pair, shape in zip(recorder.added, self.shapes, strict=True)
            if pair is not None and shape is not None
        ]
        return torch.cat(
            [part.transpose(1, 2).flatten(2) for pair in pairs for part in pair], dim=-1
        )


def layout_of(model: nn.Module, ids: Tensor) -> Layout:
    """The layout of all layers, found by running a few tokens `ids` [1, columns]. Raises UnknownCacheError for other caches."""
    config = text_config(model)
    count = int(config.num_hidden_layers)
    sliding = [
        bool(getattr(layer, "is_sliding", False)) for layer in DynamicCache(config=config).layers
    ]
    sliding = (sliding + [False] * count)[:count]
    recorder = Recorder(count)
    layers: list[Any] = [
        _Layer(index, 0, None, None, each, recorder) for index, each in enumerate(sliding)
    ]
    run_until_enough(model, input_ids=ids, **{cache_name(model): Cache(layers=layers)})
    shapes, dtypes = [], []
    for index, pair in enumerate(recorder.added):
        if pair is None or any(part.ndim != 4 for part in pair):
            raise UnknownCacheError(
                f"layer {index} of {type(model).__name__} keeps no keys and values"
            )
        keys, values = pair
        shapes.append((keys.shape[1], keys.shape[3], values.shape[3]))
        dtypes.append(keys.dtype)
    return Layout(tuple(shapes), tuple(sliding), dtypes[0])
