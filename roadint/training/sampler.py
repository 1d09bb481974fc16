"""The order of the examples: every step sees every composition, and rows that run together are of like length."""

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

    def __init__(self, examples: Sequence[Example], step_rows: int, seed: int) -> None:
        """Examples of any number of compositions; the order depends on the seed and the epoch alone."""
        self.lengths = [len(example) for example in examples]
        self.groups: dict[str | None, list[int]] = defaultdict(list)
        for index, example in enumerate(examples):
            self.groups[example.composition].append(index)
        self.step_rows, self.seed, self.epoch = step_rows, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * self.epoch)
        placed = []
        for rows in self.groups.values():
            share = max(1, round(self.step_rows * len(rows) / len(self)))
            order = self._alike(rows, share, generator)
            placed += [((place + 0.5) / len(order), row) for place, row in enumerate(order)]
        mixed = [row for _, row in sorted(placed)]
        for start in range(0, len(mixed), self.step_rows):
            yield from sorted(mixed[start : start + self.step_rows], key=self.lengths.__getitem__)

    def _alike(self, rows: Sequence[int], size: int, generator: torch.Generator) -> list[int]:
        """The rows in random order, but each run of `size` of like length."""
        shuffled = [rows[i] for i in torch.randperm(len(rows), generator=generator).tolist()]
        ordered = sorted(shuffled, key=self.lengths.__getitem__)
        runs = [ordered[start : start + size] for start in range(0, len(ordered), size)]
        return [row for i in torch.randperm(len(runs), generator=generator).tolist() for row in runs[i]]
