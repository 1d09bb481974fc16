"""The order of the examples.

Every step sees every composition, and rows that run together are of like length.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from roadint.data.collate import Example


class MixedLengthSampler(Sampler[int]):
    """A new order each epoch, in which each optimizer step holds all compositions in proportion.

    Adam divides by the recent size of a gradient: blocks that get one only in every other step move
    less, so a step should not be of one composition. Padding costs as much as tokens do: the rows
    of a composition that share a step are of like length, and a step's rows are sorted by length,
    so that its parts (the micro-batches of gradient accumulation) hardly need padding.

    Args:
        examples: Of any number of compositions.
        step_rows: How many rows an optimizer step has, over all processes.
        seed: The order depends on it and the epoch alone.
        processes: How many train together. Batches go to them in turn, and each process sees the
            examples of its `shard` alone, all of them in every epoch (a few twice, so that all
            processes have as many batches).
        micro_batch: How many rows a batch has; all rows of a process's step by default.

    Example:
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
        self._shards = [
            [group[process::processes] for group in groups.values()] for process in range(processes)
        ]
        self._rows_each = max(len(self.shard(process)) for process in range(processes))
        if processes > 1:
            batches = math.ceil(self._rows_each / self.micro_batch)
            self._rows_each = batches * self.micro_batch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next; Trainer does."""
        self.epoch = epoch

    def shard(self, process: int) -> list[int]:
        """The indices of the examples that one process sees."""
        return [index for group in self._shards[process] for index in group]

    def __len__(self) -> int:
        return self._rows_each * self.processes

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * self.epoch)
        orders = []
        for shard in self._shards:
            order = list(self._mixed(shard, generator))
            orders.append([order[i % len(order)] for i in range(self._rows_each)])
        for start in range(0, self._rows_each, self.micro_batch):
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
        """The rows in random order, but each run of `size` of like length."""
        shuffled = [rows[i] for i in torch.randperm(len(rows), generator=generator).tolist()]
        ordered = sorted(shuffled, key=lambda row: sum(self.lengths[row]))
        runs = [ordered[start : start + size] for start in range(0, len(ordered), size)]
        order = torch.randperm(len(runs), generator=generator).tolist()
        return [row for index in order for row in runs[index]]
