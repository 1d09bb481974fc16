"""Where in the sequence an intervention acts: `last(n)`, `first(n)`, `all`, `at(i, …)`; in the prompt, in what follows it, or both.

Positions count a row's own tokens: those that the attention mask keeps, so padding on either side changes nothing. Whether a token
is edited depends only on its rank in its row and on the length of the prompt, never on how the sequence was cut into forward
passes; this is why the edit is the same with and without a cache, with beams and with a prefill in chunks.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from roadint.errors import RoadError, did_you_mean, listing

Phase = Literal["prompt", "generated", "both"]
Kind = Literal["last", "first", "all", "at"]

_CALL = re.compile(r"\s*(?P<kind>\w+)\s*(?:\(\s*(?P<numbers>[^()]*?)\s*\))?\s*")
_EXPECTED = "expected 'last', 'last(n)', 'first(n)', 'all' or 'at(i, …)'"


@dataclass(frozen=True)
class Position:
    """kind and numbers: `last(n)`, `first(n)`, `all`, or `at(i, …)` (from 0; negative from the end of the prompt).

    phase: "prompt", "generated" (what follows the prompt) or "both". The generated part grows by a token at a time, each of
    which is the last one once, so there `last(n)` is every token; `first(n)` and `at(i)` count from the first generated token.
    """

    kind: Kind = "last"
    numbers: tuple[int, ...] = (1,)
    phase: Phase = "prompt"

    @classmethod
    def parse(cls, text: "str | Position", phase: Phase = "prompt") -> "Position":
        """Read `"last(2)"` and the like. Raises RoadError for an unknown kind or phase, and for counts that select nothing."""
        if isinstance(text, Position):
            return text
        if phase not in get_args(Phase):
            raise RoadError(f"unknown phase {phase!r}: expected one of {listing(get_args(Phase))}")
        found = _CALL.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise RoadError(f"position {text!r} is not understood: {_EXPECTED}")
        kind: Kind = found["kind"]  # type: ignore[assignment]
        if kind not in get_args(Kind):
            raise RoadError(f"unknown position {text!r}: {_EXPECTED}{did_you_mean(kind, get_args(Kind))}")
        try:
            numbers = tuple(int(number) for number in (found["numbers"] or "").split(",") if number.strip())
        except ValueError:
            raise RoadError(f"position {text!r} has numbers that are no integers: {_EXPECTED}") from None
        if kind in ("last", "first"):
            numbers = numbers or (1,)
            if len(numbers) != 1 or numbers[0] < 1:
                raise RoadError(f"position {text!r} needs one count of at least 1, such as {kind}(1)")
        if kind == "all" and numbers:
            raise RoadError(f"position {text!r} takes no numbers: expected 'all'")
        if kind == "at" and not numbers:
            raise RoadError(f"position {text!r} names no token: expected at least one index, such as 'at(0)' or 'at(-1)'")
        if kind == "at" and phase != "prompt" and min(numbers) < 0:
            raise RoadError(f"position {text!r} counts from the end, but phase {phase!r} has no end yet: expected indices from 0")
        return cls(kind, numbers, phase)

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
            selected |= follows & (self._selects(rank - length, None) if self.kind != "last" else follows)
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

    def edited(self, rank: Tensor, prompt_length: Tensor) -> Tensor:
        """Which tokens are edited; as Position.edited."""
        selected = torch.zeros_like(rank, dtype=torch.bool)
        for row, (indices, length) in enumerate(zip(self.indices, prompt_length.tolist(), strict=True)):
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


PositionLike = Position | str | Sequence[Sequence[int]]


def parse_positions(positions: PositionLike) -> Position | Tokens:
    """A position for all rows, or explicit indices, a list for each row. Raises RoadError."""
    if isinstance(positions, (str, Position)):
        return Position.parse(positions)
    rows = [list(row) if isinstance(row, Sequence) else row for row in positions]
    if not all(isinstance(row, list) and row and all(isinstance(index, int) for index in row) for row in rows):
        raise RoadError(f"positions {positions!r} are not understood: {_EXPECTED}, or a list of token indices for each row")
    return Tokens(tuple(tuple(row) for row in rows))
