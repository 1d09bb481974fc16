"""Where in the sequence an intervention acts: `last(n)`, `first(n)`, `all`, `at(i, …)`; in the prompt, in what follows it, or both.

Positions count a row's own tokens: those that the attention mask keeps, so padding on either side changes nothing. Whether a token
is edited depends only on its rank in its row and on the length of the prompt, never on how the sequence was cut into forward
passes; this is why the edit is the same with and without a cache, with beams and with a prefill in chunks.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from roadint.errors import RoadError, check_known, did_you_mean, quoted
from roadint.grammar.scanner import check_length

Phase = Literal["prompt", "generated", "both"]
Kind = Literal["last", "first", "all", "at"]

_CALL = re.compile(r"([^\W\d]\w*)\s*(?:\(([^()]*)\))?")
_INTEGER = re.compile(r"-?[0-9]{1,9}")
_LONGEST = 16_000  # characters
_MOST = 1_000  # indices
_LARGEST = 999_999_999  # a count or an index
_EXPECTED = "expected 'last', 'last(n)', 'first(n)', 'all' or 'at(i, …)'"


@dataclass(frozen=True)
class Position:
    """kind and numbers: `last(n)`, `first(n)`, `all`, or `at(i, …)` (from 0; negative from the end of the prompt).

    phase: "prompt", "generated" (what follows the prompt) or "both". The generated part grows by a token at a time, each of
    which is the last one once, so there `last(n)` is every token; `first(n)` and `at(i)` count from the first generated token.
    Its text, `str(position)`, is kind and numbers. Raises RoadError for fields that select nothing.
    """

    kind: Kind = "last"
    numbers: tuple[int, ...] = ()  # (1,) for last and first
    phase: Phase = "prompt"

    def __post_init__(self) -> None:
        check_known("phase", self.phase, get_args(Phase))
        check_known("position", self.kind, get_args(Kind))
        numbers = _integers(self.numbers)
        if numbers is None or len(numbers) > _MOST:
            raise RoadError(
                f"position {quoted(self.kind)} has the numbers {quoted(self.numbers)}: "
                f"expected a tuple of up to {_MOST:,} integers of at most {_LARGEST:,} in size"
            )
        if self.kind in ("last", "first"):
            numbers = numbers or (1,)
        object.__setattr__(self, "numbers", numbers)
        if self.kind in ("last", "first") and (len(numbers) != 1 or numbers[0] < 1):
            raise RoadError(
                f"position {quoted(str(self))} needs one count of at least 1, such as {self.kind}(1)"
            )
        if self.kind == "all" and numbers:
            raise RoadError(
                f"position 'all' takes no numbers, but has {quoted(numbers)}: expected 'all'"
            )
        if self.kind == "at" and not numbers:
            raise RoadError(
                "position 'at' names no token: expected at least one index, such as 'at(0)' or 'at(-1)'"
            )
        if self.kind == "at" and self.after_prompt and min(numbers) < 0:
            raise RoadError(
                f"position {quoted(str(self))} counts from the end, but phase {self.phase!r} has no end yet: "
                "expected indices from 0"
            )

    @classmethod
    def parse(cls, text: "str | Position", phase: Phase = "prompt") -> "Position":
        """Read `"last(2)"` and the like; a Position stays as it is, with its own phase.

        Raises RoadError for an unknown kind or phase, for numbers that are none or that select nothing, and for a phase that
        contradicts a Position's own.
        """
        check_known("phase", phase, get_args(Phase))
        if isinstance(text, Position):
            if phase not in ("prompt", text.phase):  # "prompt" is said by default
                raise RoadError(
                    f"position {quoted(str(text))} has phase {text.phase!r}, but phase {phase!r} is asked for: "
                    f"expected one of them, such as Position.parse({quoted(str(text))}, {phase!r})"
                )
            return text
        if not isinstance(text, str):
            raise RoadError(f"position {quoted(text)} is not understood: {_EXPECTED}")
        check_length("position", text, _LONGEST)
        found = _CALL.fullmatch(text.strip())
        if found is None:
            raise RoadError(f"position {quoted(text)} is not understood: {_EXPECTED}")
        kind: Kind = found[1]  # type: ignore[assignment]
        if kind not in get_args(Kind):
            raise RoadError(
                f"unknown position {quoted(text)}: {_EXPECTED}{did_you_mean(kind, get_args(Kind))}"
            )
        listed = [] if found[2] is None else [number.strip() for number in found[2].split(",")]
        if not all(_INTEGER.fullmatch(number) for number in listed):
            raise RoadError(
                f"position {quoted(text)} has numbers that are no integers of at most {_LARGEST:,}: {_EXPECTED}"
            )
        return cls(kind, tuple(map(int, listed)), phase)

    @property
    def after_prompt(self) -> bool:
        """Whether tokens after the prompt may be edited."""
        return self.phase != "prompt"

    def edited(self, rank: Tensor, prompt_length: Tensor) -> Tensor:
        """Which tokens are edited.

        rank: [rows, columns] int, each token's index among its row's kept tokens (padding has rank −1).
        prompt_length: [rows] int, how many kept tokens are the prompt.
        Returns [rows, columns] bool.
        """
        length = prompt_length[:, None]
        in_prompt = (rank >= 0) & (rank < length)
        follows = rank >= length
        selected = torch.zeros_like(in_prompt)
        if self.phase != "generated":
            selected |= in_prompt & self._selects(rank, length)
        if self.after_prompt:
            selected |= follows & (
                self._selects(rank - length, None) if self.kind != "last" else follows
            )
        return selected

    def check(self, lengths: Tensor) -> None:
        """Raises RoadError where `at(i)` names a token that a prompt does not have; lengths: [rows] int, of those that matter."""
        if self.kind == "at" and self.phase != "generated" and len(lengths):
            shortest = int(lengths.min())
            for index in self.numbers:
                if not -shortest <= index < shortest:
                    raise RoadError(
                        f"position {self} is outside a prompt of {shortest} tokens: "
                        f"expected indices from {-shortest} to {shortest - 1}"
                    )

    def _selects(self, index: Tensor, length: Tensor | None) -> Tensor:
        match self.kind:
            case "all":
                return torch.ones_like(index, dtype=torch.bool)
            case "first":
                return index < self.numbers[0]
            case "last":
                return index >= (0 if length is None else length - self.numbers[0])
        chosen = torch.zeros_like(index, dtype=torch.bool)
        for number in self.numbers:
            chosen |= index == (number if number >= 0 or length is None else length + number)
        return chosen

    def __str__(self) -> str:
        if self.kind == "all" or (self.numbers == (1,) and self.kind == "last"):
            return self.kind
        return f"{self.kind}({', '.join(map(str, self.numbers))})"


@dataclass(frozen=True)
class Tokens:
    """Each row's own tokens of the prompt, for one call: indices[row], from 0; negative from the end of the row's prompt."""

    indices: tuple[tuple[int, ...], ...]
    after_prompt = False

    def __post_init__(self) -> None:
        given = self.indices if isinstance(self.indices, (list, tuple)) else ()
        rows = tuple(_integers(row) or () for row in given)
        if not all(rows) or not rows:
            raise RoadError(
                f"positions {quoted(self.indices)} are not understood: {_EXPECTED}, or a list of token indices for each row"
            )
        object.__setattr__(self, "indices", rows)

    def edited(self, rank: Tensor, prompt_length: Tensor) -> Tensor:
        """Which tokens are edited; as Position.edited."""
        selected = torch.zeros_like(rank, dtype=torch.bool)
        for row, (indices, length) in enumerate(
            zip(self.indices, prompt_length.tolist(), strict=True)
        ):
            for index in indices:
                selected[row] |= rank[row] == (index if index >= 0 else length + index)
        return selected

    def check(self, lengths: Tensor) -> None:
        """Raises RoadError where a row's prompt, of lengths[row] tokens, does not have a token, or rows are too few or many."""
        if len(self.indices) != len(lengths):
            raise RoadError(
                f"positions of {len(self.indices)} rows for {len(lengths)}: expected a list of token indices for each row"
            )
        for row, (indices, length) in enumerate(zip(self.indices, lengths.tolist(), strict=True)):
            for index in indices:
                if not -length <= index < length:
                    raise RoadError(
                        f"position {index} of row {row} is outside its {length} tokens: expected {-length} to {length - 1}"
                    )


PositionLike = Position | Tokens | str | Sequence[Sequence[int]]


def parse_positions(positions: PositionLike) -> Position | Tokens:
    """A position for all rows, or explicit indices, a list for each row. Raises RoadError."""
    if isinstance(positions, (str, Position)):
        return Position.parse(positions)
    return positions if isinstance(positions, Tokens) else Tokens(positions)  # type: ignore[arg-type]


def _integers(given: Any) -> tuple[int, ...] | None:
    """A list, tuple or range of integers as a tuple; None for anything else."""
    if isinstance(given, range):
        given = (
            given
            if max(abs(given.start), abs(given.stop)) <= _LARGEST and len(given) <= _LONGEST
            else None
        )
    if not isinstance(given, (list, tuple, range)):
        return None
    if not all(
        isinstance(number, Integral)
        and not isinstance(number, bool)
        and abs(int(number)) <= _LARGEST
        for number in given
    ):
        return None
    return tuple(map(int, given))
