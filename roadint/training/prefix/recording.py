"""The pass over the data that stores what the edit can't change."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from roadint.data.collate import Example
from roadint.data.prompts import pad
from roadint.engines.transformers.partial import run_until_enough
from roadint.progress import track
from roadint.training.prefix.cut_model import CutModel
from roadint.training.prefix.key_values import KeyValueRecorder
from roadint.training.prefix.storage import PrefixStorage

_TOKENS = 2048  # of a batch, padding included


def record(
    cut: CutModel, examples: Sequence[Example], storage: PrefixStorage, fill: int, *, quiet: bool
) -> None:
    """Fill a storage, long examples first, in batches of like length.

    Args:
        cut: the model that runs.
        examples: the distinct ones that the storage is planned for, in its order.
        storage: where what they give is put.
        fill: the id of the padding.
        quiet: no progress bar.
    """
    plan = storage.plan
    header = _record_shared(cut, examples[0].prompt[: plan.shared], storage)
    batches = list(_batches(plan.lengths - plan.shared))
    for index in track(batches, len(batches), "prefix reuse", quiet=quiet):
        tokens = [examples[number].inputs[plan.shared :] for number in index.tolist()]
        ids, past = pad(tokens, fill, "right"), header.expand(len(index), -1, -1)
        hidden = _record_hidden(cut, index, ids, past, storage) if cut.skipped else None
        _record_prefix(cut, index, ids, past, hidden, storage)


def _record_shared(
    cut: CutModel, tokens: list[int], storage: PrefixStorage
) -> Float[Tensor, "1 shared numbers"]:
    """The keys and values of all layers: the rest of each example needs the lower ones as well."""
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


def _record_hidden(
    cut: CutModel,
    index: Int[Tensor, " rows"],
    ids: Int[Tensor, "rows columns"],
    header: Float[Tensor, "rows shared numbers"],
    storage: PrefixStorage,
) -> Float[Tensor, "rows columns width"]:
    """Run the layers below the cut."""
    plan = storage.plan
    rank = _ranks(plan.shared, ids)
    exists = rank < plan.lengths[index, None]
    hidden = cut.hidden_at_cut(**cut.inputs(ids, rank, exists, cut.layout.past(header)))
    wanted = exists & (rank >= plan.starts[index, None])
    storage.hidden.put(plan.hidden_slots(index, rank)[wanted], hidden[wanted.to(hidden.device)])
    return hidden


def _record_prefix(
    cut: CutModel,
    index: Int[Tensor, " rows"],
    ids: Int[Tensor, "rows columns"],
    header: Float[Tensor, "rows shared numbers"],
    hidden: Float[Tensor, "rows columns width"] | None,
    storage: PrefixStorage,
) -> None:
    """Run the layers above the cut, over the tokens before the edit."""
    plan, layout = storage.plan, cut.upper
    columns = int(plan.starts[index].max()) - plan.shared
    if not columns or not layout.width:
        return
    ids = ids[:, :columns]
    rank = _ranks(plan.shared, ids)
    wanted = rank < plan.starts[index, None]
    recorder = KeyValueRecorder(len(layout.shapes))
    inputs = cut.inputs(ids, rank, wanted, layout.past(header, recorder))
    resumed = cut.resumed(None if hidden is None else hidden[:, :columns])
    run_until_enough(resumed.of(cut.model), **inputs)
    added = layout.joined(recorder)
    storage.prefix.put(plan.prefix_slots(index, rank)[wanted], added[wanted.to(added.device)])


def _ranks(shared: int, ids: Int[Tensor, "rows columns"]) -> Int[Tensor, "rows columns"]:
    return (shared + torch.arange(ids.shape[1])).expand(len(ids), -1)


def _batches(lengths: Int[Tensor, " examples"]) -> Iterator[Int[Tensor, " rows"]]:
    """The indices of all examples, long ones first, in batches of at most _TOKENS tokens."""
    order = lengths.argsort(descending=True)
    while len(order):
        rows = max(1, _TOKENS // max(1, int(lengths[order[0]])))
        yield order[:rows]
        order = order[rows:]
