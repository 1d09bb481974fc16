"""The edited tokens of a request, and of all requests of a step at once."""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from roadint.engines.vllm.rows.plan import Codes, Plan, Ranks

_LENGTHS = 256  # of prompts, that a plan keeps

Run = tuple[int, int, int]
"""Neighbouring tokens of one code: the first, the one after the last, the code."""


class PromptEdits:
    """The edited tokens of one request's prompt, and those that follow it.

    Args:
        plan: What acts.
        prompt_length: The length of the prompt, in tokens.
    """

    def __init__(self, plan: Plan, prompt_length: int) -> None:
        self.plan, self.prompt_length = plan, prompt_length
        ranks = np.arange(prompt_length)
        firsts, stops, codes = _runs(
            ranks, plan.codes(ranks, np.full(prompt_length, prompt_length))
        )
        # A few bytes a run: a long prompt that is edited everywhere has one.
        self._firsts, self._stops = array("q", firsts.tolist()), array("q", stops.tolist())
        self._codes = array("q", codes.tolist())

    def reaches(self, start: int) -> bool:
        """Whether a token from this rank on may be edited."""
        return self.plan.after_prompt or start < self.prompt_length

    def in_prompt(self, start: int, stop: int) -> Iterator[Run]:
        """The edited runs of a part of the prompt, in order.

        Args:
            start: The rank of the first token of the part.
            stop: The rank after the last one; it may lie after the prompt.
        """
        low = bisect_right(self._stops, start)
        for index in range(low, bisect_left(self._firsts, stop, low)):
            yield (
                max(self._firsts[index], start),
                min(self._stops[index], stop),
                self._codes[index],
            )

    def runs(self, start: int, stop: int) -> list[Run]:
        """The edited runs of a part of the row, in order, none longer than it has to be.

        Args:
            start: The rank of the first token of the part.
            stop: The rank after the last one.
        """
        found = list(self.in_prompt(start, stop))
        if self.plan.after_prompt and stop > self.prompt_length:
            ranks = np.arange(max(start, self.prompt_length), stop)
            codes = self.plan.codes(ranks, np.full(len(ranks), self.prompt_length))
            found += zip(*(part.tolist() for part in _runs(ranks, codes)), strict=True)
        return _joined(found)

    def key_of_block(self, start: int, stop: int) -> tuple[Any, ...] | None:
        """What a block of the prefix cache is keyed by, beside its tokens and the blocks before it.

        Args:
            start: The rank of the block's first token.
            stop: The rank after its last one.

        Returns:
            None for a block that all compositions share: with no adapter and no edited token in it.
        """
        key: list[Any] = []
        if start == 0 and self.plan.adapters:  # the blocks after it are chained to it
            key.append(("roadint.adapters", repr(self.plan.adapter_key)))
        runs = self.runs(start, stop)
        if runs:
            key.append(("roadint", f"{self.plan.hidden_text} {runs}"))
        return tuple(key) or None


def prompt_edits(plan: Plan, prompt_length: int) -> PromptEdits:
    """The edited tokens of a request; they are the same for prompts of one length.

    Args:
        plan: What acts, which keeps them.
        prompt_length: The length of the prompt, in tokens.
    """
    known = plan.of_lengths
    found: PromptEdits | None = known.get(prompt_length)
    if found is None:
        if len(known) >= _LENGTHS:
            known.clear()
        found = known[prompt_length] = PromptEdits(plan, prompt_length)
    return found


class Chunk(NamedTuple):
    """The tokens of one request in a step.

    Args:
        edits: What is edited in the request.
        start: The rank of its first token in the step.
        stop: The rank after its last one.
        first: The number of its first token in the step.
    """

    edits: PromptEdits
    start: int
    stop: int
    first: int


class Edited(NamedTuple):
    """The edited tokens of a step.

    Args:
        tokens: Their numbers in the step, in order.
        chunks: For each the number of its chunk.
        codes: For each its code.
    """

    tokens: Int[np.ndarray, " edited"]
    chunks: Int[np.ndarray, " edited"]
    codes: Codes


def edited_in(chunks: Sequence[Chunk]) -> Edited:
    """Find the edited tokens of a step; a few operations whatever the number of requests.

    Args:
        chunks: The requests, in the order of their tokens.
    """
    runs: list[tuple[int, int, int, int]] = []
    grown: dict[str, list[int]] = {}
    for number, (edits, start, stop, first) in enumerate(chunks):
        if start < edits.prompt_length:
            shift = first - start
            for begin, end, code in edits.in_prompt(start, stop):
                runs.append((begin + shift, end - begin, number, code))
        if stop > edits.prompt_length and edits.plan.after_prompt:
            grown.setdefault(edits.plan.positions_key, []).append(number)
    parts = [_spread(runs)] if runs else []
    parts += [_generated(chunks, numbers) for numbers in grown.values()]
    if len(parts) == 1:
        return parts[0]
    merged = [np.concatenate(kind) for kind in zip(_spread([]), *parts, strict=True)]
    order = merged[0].argsort(kind="stable")
    return Edited(*(kind[order] for kind in merged))


def _spread(runs: Sequence[tuple[int, int, int, int]]) -> Edited:
    """The tokens of runs: first token, length, chunk, code."""
    first, length, chunk, code = np.array(runs, dtype=np.int64).reshape(-1, 4).T
    return Edited(_ranges(first, length), chunk.repeat(length), code.repeat(length))


def _generated(chunks: Sequence[Chunk], numbers: Sequence[int]) -> Edited:
    """The edited tokens after the prompts of chunks whose plans have the same positions."""
    values = [
        (max(start, edits.prompt_length), stop, first - start, edits.prompt_length, number)
        for number in numbers
        for edits, start, stop, first in (chunks[number],)
    ]
    start, stop, shift, prompt_length, chunk = np.array(values, dtype=np.int64).T
    length = stop - start
    rank = _ranges(start, length)
    codes = chunks[numbers[0]].edits.plan.codes(rank, prompt_length.repeat(length))
    edited = codes.nonzero()[0]
    tokens, of_chunk = rank + shift.repeat(length), chunk.repeat(length)
    return Edited(tokens[edited], of_chunk[edited], codes[edited])


def _ranges(first: Ranks, length: Ranks) -> Ranks:
    """Ranges of integers, end to end."""
    before = length.cumsum() - length
    ranges: Ranks = (first - before).repeat(length) + np.arange(length.sum())
    return ranges


def _runs(ranks: Ranks, codes: Codes) -> tuple[Ranks, Ranks, Codes]:
    """Runs of equal codes that are not 0, of neighbouring ranks: first, stop, code."""
    if not len(ranks):
        return ranks, ranks, codes
    first = np.concatenate(([0], np.flatnonzero(np.diff(codes)) + 1))
    stop = np.concatenate((first[1:], [len(codes)]))
    edited = codes[first] != 0
    first, stop = first[edited], stop[edited]
    return ranks[0] + first, ranks[0] + stop, codes[first]


def _joined(runs: Sequence[Run]) -> list[Run]:
    """Runs of which none could go on in the next."""
    joined: list[Run] = []
    for first, stop, code in runs:
        if joined and joined[-1][1:] == (first, code):
            joined[-1] = (joined[-1][0], stop, code)
        else:
            joined.append((first, stop, code))
    return joined
