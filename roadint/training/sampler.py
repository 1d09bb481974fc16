"""The order of the examples: every step sees every composition, and rows that run together are of like length."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from roadint.data.collate import Example


class MixedLengthSampler(Sampler[int]):
    """A new order each epoch in which each optimizer step of `step_rows` rows holds all compositions in proportion.

    Adam divides by the recent size of a gradient: blocks that get one only in every other step move less, so a step should not
    be of one composition. Padding costs as much as tokens do: the rows of a composition that share a step are of like length,
    and a step's rows are sorted by length, so that its parts (the micro-batches of gradient accumulation) hardly need padding.
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
        """Examples of any number of compositions; the order depends on the seed and the epoch alone.

        step_rows: of an optimizer step, over all processes. With several processes the batches of `micro_batch` rows go to them
        in turn, and each process sees the examples of its own `shard` alone, all of them in every epoch (a few twice, so that
        all processes have as many batches).
        """
        self.lengths = [(len(example.completion), len(example.prompt)) for example in examples]
        self.step_rows, self.seed, self.epoch, self.processes = (
            step_rows // processes,
            seed,
            0,
            processes,
        )
        groups: dict[str | None, list[int]] = defaultdict(list)
        for index, example in enumerate(examples):
            groups[example.composition].append(index)
        self._shards = [
            [group[process::processes] for group in groups.values()] for process in range(processes)
        ]
        self.micro_batch = micro_batch or self.step_rows
        longest = max(len(self.shard(process)) for process in range(processes))
        self._each = (
            longest if processes == 1 else math.ceil(longest / self.micro_batch) * self.micro_batch
        )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def shard(self, process: int) -> list[int]:
        """The examples that one process sees."""
        return [index for group in self._shards[process] for index in group]

    def __len__(self) -> int:
        return self._each * self.processes

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * self.epoch)
        orders = []
        for shard in self._shards:
            order = list(self._mixed(shard, generator))
            orders.append([order[place % len(order)] for place in range(self._each)])
        for start in range(0, self._each, self.micro_batch):
            for order in orders:
                yield from order[start : start + self.micro_batch]

    def _mixed(self, groups: Sequence[Sequence[int]], generator: torch.Generator) -> Iterator[int]:
        """The examples of all groups in proportion, the rows of each step sorted by length."""
        count = sum(map(len, groups))
        placed = []
        for rows in filter(None, groups):
            share = max(1, round(self.step_rows * len(rows) / count))
            order = self._alike(rows, share, generator)
            placed += [((place + 0.5) / len(order), row) for place, row in enumerate(order)]
        mixed = [row for _, row in sorted(placed)]
        for start in range(0, len(mixed), self.step_rows):
            yield from sorted(mixed[start : start + self.step_rows], key=self.lengths.__getitem__)

    def _alike(self, rows: Sequence[int], size: int, generator: torch.Generator) -> list[int]:
        """The rows in random order, but each run of `size` of like length."""
        shuffled = [rows[i] for i in torch.randperm(len(rows), generator=generator).tolist()]
        ordered = sorted(shuffled, key=lambda row: sum(self.lengths[row]))
        runs = [ordered[start : start + size] for start in range(0, len(ordered), size)]
        return [
            row for i in torch.randperm(len(runs), generator=generator).tolist() for row in runs[i]
        ]
