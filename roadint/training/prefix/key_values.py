"""The keys and values of prefixes.

They are recorded in the model's own forward, stored as numbers a token, and passed to the model as
a Cache.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from roadint.architecture.layers import text_config
from roadint.architecture.properties import cache_name
from roadint.engines.transformers.partial import Enough, run_until_enough
from roadint.training.prefix.reusable import CannotReuseError

Keys = Float[Tensor, "rows heads columns width"]
FlatKeyValues = Float[Tensor, "rows columns numbers"]


class KeyValueRecorder:
    """Records the keys and values of a forward pass, which ends at the topmost layer."""

    def __init__(self, layers: int) -> None:
        self.added: list[tuple[Keys, Keys] | None] = [None] * layers

    def note(self, layer: int, keys: Keys, values: Keys) -> None:
        """Record those of one layer."""
        self.added[layer] = keys, values
        if layer == len(self.added) - 1:
            raise Enough


class _PrefixLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer's prefix, to which a forward's tokens are joined without being kept."""

    def __init__(
        self,
        index: int,
        length: int,
        key_values: tuple[Keys, Keys] | None,
        is_sliding: bool,
        recorder: KeyValueRecorder | None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.index, self.length, self.recorder = index, length, recorder
        self.keys, self.values = key_values or (None, None)
        self.is_sliding = is_sliding

    def update(
        self, key_states: Keys, value_states: Keys, *args: Any, **kwargs: Any
    ) -> tuple[Keys, Keys]:
        if self.recorder is not None:
            self.recorder.note(self.index, key_states, value_states)
        if self.keys is None or self.values is None:
            return key_states, value_states
        device = key_states.device  # of the layer, which may be another than the storage's
        keys = torch.cat([self.keys.to(device), key_states], dim=-2)
        return keys, torch.cat([self.values.to(device), value_states], dim=-2)

    def get_seq_length(self, *args: Any) -> int:
        return self.length

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        # Older transformers pass positions instead of their number. A sliding layer masks, but
        # drops nothing.
        added = query_length if isinstance(query_length, int) else len(query_length)
        return self.length + added, 0


@dataclass(frozen=True)
class KeyValueLayout:
    """The order of a token's keys and values in a vector of numbers: by layer, keys first.

    Attributes:
        shapes: For each layer (heads, key width, value width); None where nothing is stored.
        sliding: For each layer, whether it has a sliding window.
        dtype: The dtype of the numbers.
    """

    shapes: tuple[tuple[int, int, int] | None, ...]
    sliding: tuple[bool, ...]
    dtype: torch.dtype

    @property
    def width(self) -> int:
        """The numbers of a token."""
        return sum(heads * (key + value) for heads, key, value in filter(None, self.shapes))

    def above(self, skipped: int) -> "KeyValueLayout":
        """The layout without the lowest layers.

        Its numbers are the last ones in this layout.
        """
        return replace(self, shapes=(*[None] * skipped, *self.shapes[skipped:]))

    def past(self, prefix: FlatKeyValues, recorder: KeyValueRecorder | None = None) -> Cache:
        """A cache that holds a prefix and forgets what is added to it.

        Args:
            prefix: At least `width` numbers a token, of which the last are used.
            recorder: Records what a pass adds.

        Returns:
            A cache for one forward pass.
        """
        layers: list[Any] = []
        rest = prefix[..., prefix.shape[-1] - self.width :]
        for index, (shape, sliding) in enumerate(zip(self.shapes, self.sliding, strict=True)):
            key_values = None
            if shape is not None:
                heads, key, value = shape
                sizes = [heads * key, heads * value, rest.shape[-1] - heads * (key + value)]
                keys, values, rest = torch.split(rest, sizes, dim=-1)
                key_values = _by_head(keys, heads, key), _by_head(values, heads, value)
            layers.append(_PrefixLayer(index, prefix.shape[1], key_values, sliding, recorder))
        return Cache(layers=layers)

    def joined(self, recorder: KeyValueRecorder) -> FlatKeyValues:
        """The keys and values that a pass has added, in this layout."""
        parts: list[Tensor] = []
        for added, shape in zip(recorder.added, self.shapes, strict=True):
            if added is not None and shape is not None:
                parts += [part.transpose(1, 2).flatten(2) for part in added]
        return torch.cat([part.to(parts[0].device) for part in parts], dim=-1)


def key_value_layout(model: nn.Module, ids: Int[Tensor, "1 columns"]) -> KeyValueLayout:
    """The layout of all layers of a model.

    Args:
        model: The model, which runs a few tokens.
        ids: The tokens.

    Returns:
        The layout.

    Raises:
        CannotReuseError: where a layer caches something else from token to token.
    """
    config = text_config(model)
    count = int(config.num_hidden_layers)
    cached = DynamicCache(config=config).layers[:count]
    sliding = [bool(getattr(layer, "is_sliding", False)) for layer in cached]
    sliding += [False] * (count - len(sliding))
    recorder = KeyValueRecorder(count)
    layers: list[Any] = [
        _PrefixLayer(index, 0, None, slides, recorder) for index, slides in enumerate(sliding)
    ]
    run_until_enough(model, input_ids=ids, **{cache_name(model): Cache(layers=layers)})
    shapes, dtypes = [], []
    for index, added in enumerate(recorder.added):
        if added is None or any(part.ndim != 4 for part in added):
            raise CannotReuseError(
                f"layer {index} of {type(model).__name__} keeps no keys and values"
            )
        keys, values = added
        shapes.append((keys.shape[1], keys.shape[3], values.shape[3]))
        dtypes.append(keys.dtype)
    return KeyValueLayout(tuple(shapes), tuple(sliding), dtypes[0])


def _by_head(numbers: FlatKeyValues, heads: int, width: int) -> Keys:
    return numbers.reshape(*numbers.shape[:-1], heads, width).transpose(1, 2)
