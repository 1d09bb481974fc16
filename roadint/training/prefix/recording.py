"""The pass over the data that stores what the edit can't change."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from roadint.data.collate import Example
from roadint.data.prompts import pad
from roadint.engines.transformers.partial import run_until_enough
from roadint.progress import track
from roadint.training.prefix.cut_model import CutModel
from roadint.training.prefix.key_values import FlatKeyValues, KeyValueRecorder
from roadint.training.prefix.plan import TokenGrid
from roadint.training.prefix.storage import PrefixStorage

_TOKENS = 2048  # of a batch, padding included


def record_prefixes(
    cut: CutModel, examples: Sequence[Example], storage: PrefixStorage, fill: int, *, quiet: bool
) -> None:
    """Fill a storage, long examples first, in batches of similar lengths.

    Args:
        cut: The model.
        examples: The distinct examples, in the order of the storage's plan.
        storage: The storage to fill.
        fill: The id of the padding.
        quiet: Whether there is no progress bar.
    """
    plan = storage.plan
    header = _record_shared(cut, examples[0].prompt[: plan.shared], storage)
    batches = list(_batches(plan.lengths - plan.shared))
    for index in track(batches, len(batches), "prefix reuse", quiet=quiet):
        tokens = [examples[number].inputs[plan.shared :] for number in index.tolist()]
        past = header.expand(len(index), -1, -1)
        batch = _Batch(cut, storage, index, pad(tokens, fill, "right"), past)
        batch.record_prefix(batch.record_hidden() if cut.skipped else None)


def _record_shared(cut: CutModel, tokens: list[int], storage: PrefixStorage) -> FlatKeyValues:
    """Keys and values of the shared tokens, in all layers: the other tokens need them."""
    layout = cut.layout
    empty = torch.zeros(1, 0, layout.width, dtype=layout.dtype, device=cut.device)
    if not tokens:
        return empty
    recorder = KeyValueRecorder(len(layout.shapes))
    inputs = {
        "input_ids": torch.tensor([tokens], device=cut.device),
        cut.cache_name: layout.past(empty, recorder),
    }
    run_until_enough(cut.model, **inputs)
    header = layout.joined(recorder)
    storage.prefix.put(torch.arange(len(tokens)), header[0, :, layout.width - cut.upper.width :])
    return header


@dataclass(frozen=True)
class _Batch:
    """Examples that run together, from the shared tokens on."""

    cut: CutModel
    storage: PrefixStorage
    index: Int[Tensor, " rows"]
    ids: TokenGrid
    header: FlatKeyValues

    def record_hidden(self) -> Float[Tensor, "rows columns width"]:
        """Run the layers below the cut."""
        cut, plan, index, rank = self.cut, self.storage.plan, self.index, self._rank()
        exists = rank < plan.lengths[index, None]
        inputs = cut.inputs(self.ids, rank, exists, cut.layout.past(self.header))
        hidden = cut.hidden_at_cut(**inputs)
        wanted = exists & (rank >= plan.starts[index, None])
        slots = plan.hidden_slots(index, rank)[wanted]
        self.storage.hidden.put(slots, hidden[wanted.to(hidden.device)])
        return hidden

    def record_prefix(self, hidden: Float[Tensor, "rows columns width"] | None) -> None:
        """Run the layers above the cut, over the tokens before the edit."""
        cut, plan, index, layout = self.cut, self.storage.plan, self.index, self.cut.upper
        columns = int(plan.starts[index].max()) - plan.shared
        if not columns or not layout.width:
            return
        rank = self._rank()[:, :columns]
        wanted = rank < plan.starts[index, None]
        recorder = KeyValueRecorder(len(layout.shapes))
        past = layout.past(self.header, recorder)
        resumed = cut.resumed(None if hidden is None else hidden[:, :columns])
        inputs = cut.inputs(self.ids[:, :columns], rank, wanted, past)
        run_until_enough(resumed.of(cut.model), **inputs)
        added = layout.joined(recorder)
        slots = plan.prefix_slots(index, rank)[wanted]
        self.storage.prefix.put(slots, added[wanted.to(added.device)])

    def _rank(self) -> TokenGrid:
        rank = self.storage.plan.shared + torch.arange(self.ids.shape[1])
        return rank.expand(len(self.ids), -1)


def _batches(lengths: Int[Tensor, " examples"]) -> Iterator[Int[Tensor, " rows"]]:
    """The indices of all examples, long ones first, in batches of at most _TOKENS tokens."""
    order = lengths.argsort(descending=True)
    while len(order):
        rows = max(1, _TOKENS // max(1, int(lengths[order[0]])))
        yield order[:rows]
        order = order[rows:]
