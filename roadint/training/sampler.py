"""The order of training examples: all compositions in every step, rows of similar lengths."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from roadint.data.collate import Example
from roadint.errors import RoadError


class MixedLengthSampler(Sampler[int]):
    """A new order each epoch, in which each optimizer step holds all compositions in proportion.

    Adam divides by the recent size of a gradient: blocks with a gradient in every other step only
    would move less, so a step has all compositions. Padding costs as much as tokens: the rows of a
    composition that share a step have similar lengths, and the rows of a step are sorted by length,
    so that micro-batches hardly need padding.

    Args:
        examples: The examples, of any number of compositions.
        step_rows: The rows of an optimizer step, over all processes.
        seed: Order depends on the seed and the epoch alone.
        processes: How many processes train together. Batches go to them in turn, and a process sees
            only the examples of its `shard`, all of them in every epoch (a few twice, so that all
            processes have the same number of batches).
        micro_batch: The rows of a batch; by default all rows of a process's step.

    Raises:
        RoadError: for fewer examples than processes.

    Examples:
        >>> rows = [Example([1] * length, [2], "ab"[length % 2]) for length in range(1, 9)]
        >>> order = list(MixedLengthSampler(rows, step_rows=4, seed=0))
        >>> sorted(order)
        [0, 1, 2, 3, 4, 5, 6, 7]
        >>> sorted(rows[index].composition for index in order[:4])
        ['a', 'a', 'b', 'b']
    """

    def __init__(
        self,
        examples: Sequence[Example],
        step_rows: int,
        seed: int,
        *,
        processes: int = 1,
        micro_batch: int | None = None,
    ) -> None:
        self.lengths = [(len(example.completion), len(example.prompt)) for example in examples]
        self.seed, self.epoch = seed, 0
        self.processes, self.step_rows = processes, step_rows // processes
        self.micro_batch = micro_batch or self.step_rows
        groups: dict[str | None, list[int]] = defaultdict(list)
        for index, example in enumerate(examples):
            groups[example.composition].append(index)
        if len(examples) < processes:
            raise RoadError(
                f"{len(examples)} rows for {processes} processes: expected at least one each"
            )
        # Dealt in turn over all groups, so that no process has more than one row more than another.
        self._shards: list[list[list[int]]] = [[] for _ in range(processes)]
        dealt = 0
        for group in groups.values():
            for process, shard in enumerate(self._shards):
                shard.append(group[(process - dealt) % processes :: processes])
            dealt += len(group)
        self._shard_rows = max(len(self.shard(process)) for process in range(processes))
        if processes > 1:
            batches = math.ceil(self._shard_rows / self.micro_batch)
            self._shard_rows = batches * self.micro_batch

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which changes the order; Trainer calls it."""
        self.epoch = epoch

    def shard(self, process: int) -> list[int]:
        """The indices of the examples that one process sees."""
        return [index for group in self._shards[process] for index in group]

    def __len__(self) -> int:
        return self._shard_rows * self.processes

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * self.epoch)
        orders = []
        for shard in self._shards:
            order = list(self._mixed(shard, generator))
            orders.append([order[i % len(order)] for i in range(self._shard_rows)])
        for start in range(0, self._shard_rows, self.micro_batch):
            for order in orders:
                yield from order[start : start + self.micro_batch]

    def _mixed(self, groups: Sequence[Sequence[int]], generator: torch.Generator) -> Iterator[int]:
        """The examples of all groups in proportion, the rows of each step sorted by length."""
        count = sum(map(len, groups))
        spread: list[tuple[float, int]] = []
        for group in filter(None, groups):
            share = max(1, round(self.step_rows * len(group) / count))
            order = self._alike(group, share, generator)
            spread += [((index + 0.5) / len(order), row) for index, row in enumerate(order)]
        mixed = [row for _, row in sorted(spread)]
        for start in range(0, len(mixed), self.step_rows):
            yield from sorted(mixed[start : start + self.step_rows], key=self.lengths.__getitem__)

    def _alike(self, rows: Sequence[int], size: int, generator: torch.Generator) -> list[int]:
        """The rows in random order, in runs of `size` rows of similar length."""
        shuffled = [rows[i] for i in torch.randperm(len(rows), generator=generator).tolist()]
        ordered = sorted(shuffled, key=lambda row: sum(self.lengths[row]))
        runs = [ordered[start : start + size] for start in range(0, len(ordered), size)]
        order = torch.randperm(len(runs), generator=generator).tolist()
        return [row for index in order for row in runs[index]]
