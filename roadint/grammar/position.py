"""Positions: the tokens at which an intervention acts, in the prompt, after it, or both.

Positions count a row's tokens that the attention mask keeps, so padding on either side changes
nothing. Whether a token is edited depends only on its rank in its row and on the length of the
prompt, never on how the sequence was cut into forward passes. This is why the edit is the same with
and without a cache, with beams, and with a prefill in chunks.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from roadint.errors import RoadError, check_known, did_you_mean, quoted
from roadint.grammar.position_kinds import PositionKind, expected_positions, position_kinds
from roadint.grammar.scanner import check_length

Phase = Literal["prompt", "generated", "both"]

_CALL = re.compile(r"([^\W\d]\w*)\s*(?:\(([^()]*)\))?")
_INTEGER = re.compile(r"-?[0-9]{1,9}")
_LONGEST = 16_000  # characters
_MOST = 1_000  # indices
_LARGEST = 999_999_999  # a count or an index


class _EditedTokens(ABC):
    """The base class of Position and Tokens, which select the edited tokens of a batch."""

    @property
    @abstractmethod
    def after_prompt(self) -> bool: ...

    @abstractmethod
    def edited(self, rank: Tensor, prompt_length: Tensor) -> Tensor: ...

    @abstractmethod
    def most(self, columns: int) -> int: ...

    @abstractmethod
    def check(self, lengths: Tensor) -> None: ...


@dataclass(frozen=True)
class Position(_EditedTokens):
    """Which tokens of every row are edited: a kind of position and its numbers.

    The generated part grows by a token at a time, and every token is the last one once: there,
    `last(n)` is every token, and `first(n)` and `at(i)` count from the first generated token.

    Args:
        kind: "last", "first", "all" or "at".
        numbers: The count of "last" and "first", 1 by default; the indices of "at", from 0, where
            negative ones count from the end of the prompt.
        phase: "prompt", "generated" (what follows the prompt) or "both".

    Raises:
        RoadError: for fields that select nothing.

    Examples:
        >>> Position.parse("last(2)")
        Position(kind='last', numbers=(2,), phase='prompt')
        >>> Position.parse("at(0, -1)").indices(5)
        [0, 4]
        >>> str(Position("first", (3,)))
        'first(3)'
    """

    kind: str = "last"
    numbers: tuple[int, ...] = ()
    phase: Phase = "prompt"

    def __post_init__(self) -> None:
        check_known("phase", self.phase, get_args(Phase))
        check_known("position", self.kind, position_kinds())
        numbers = _integers(self.numbers)
        if numbers is None or len(numbers) > _MOST:
            raise RoadError(
                f"position {quoted(self.kind)} has the numbers {quoted(self.numbers)}: "
                f"expected a tuple of up to {_MOST:,} integers of at most {_LARGEST:,} in size"
            )
        kind = position_kinds()[self.kind]
        object.__setattr__(self, "numbers", numbers or kind.implied)
        problem = kind.problem(self.numbers, self.phase)
        if problem:
            raise RoadError(f"position {quoted(str(self))} {problem}")

    @classmethod
    def parse(cls, text: "str | Position", phase: Phase = "prompt") -> "Position":
        """Read the text of a position.

        Args:
            text: Such as "last(2)"; a Position stays as it is, with its phase.
            phase: "prompt", "generated" or "both".

        Returns:
            The position.

        Raises:
            RoadError: for an unknown kind or phase, numbers that are none or that select nothing,
                and a phase that contradicts that of a Position.
        """
        check_known("phase", phase, get_args(Phase))
        if isinstance(text, Position):
            if phase not in ("prompt", text.phase):  # "prompt" is said by default
                raise RoadError(
                    f"position {quoted(str(text))} has phase {text.phase!r}, "
                    f"but phase {phase!r} is asked for: expected one of them, "
                    f"such as Position.parse({quoted(str(text))}, {phase!r})"
                )
            return text
        if not isinstance(text, str):
            raise RoadError(f"position {quoted(text)} is not understood: {expected_positions()}")
        check_length("position", text, _LONGEST)
        call = _CALL.fullmatch(text.strip())
        if call is None:
            raise RoadError(f"position {quoted(text)} is not understood: {expected_positions()}")
        kind, inside = call.groups()
        if kind not in position_kinds():
            hint = did_you_mean(kind, position_kinds())
            raise RoadError(f"unknown position {quoted(text)}: {expected_positions()}{hint}")
        numbers = [] if inside is None else [number.strip() for number in inside.split(",")]
        if not all(_INTEGER.fullmatch(number) for number in numbers):
            raise RoadError(
                f"position {quoted(text)} has numbers that are no integers of at most "
                f"{_LARGEST:,}: {expected_positions()}"
            )
        return cls(kind, tuple(map(int, numbers)), phase)

    @property
    def after_prompt(self) -> bool:
        """Whether tokens after the prompt may be edited."""
        return self.phase != "prompt"

    def edited(
        self, rank: Int[Tensor, "rows columns"], prompt_length: Int[Tensor, " rows"]
    ) -> Bool[Tensor, "rows columns"]:
        """Which tokens are edited.

        Args:
            rank: The index of every token among the tokens of its row, without padding; −1 for
                padding.
            prompt_length: How many tokens of a row are its prompt.

        Returns:
            True where a token is edited.
        """
        length = prompt_length[:, None]
        match self.phase:
            case "prompt":
                return self._in_prompt(rank, length)
            case "generated":
                return self._generated(rank, length)
        return self._in_prompt(rank, length) | self._generated(rank, length)

    def most(self, columns: int) -> int:
        """How many tokens of a row are edited at most.

        Args:
            columns: How many tokens a row has, at most.
        """
        most = position_kinds()[self.kind].most(self.numbers)
        return columns if most is None or self.after_prompt else min(most, columns)

    @property
    def names_tokens(self) -> bool:
        """Whether prompts may lack a token that it names; `check` has nothing to do otherwise."""
        kind = type(position_kinds()[self.kind])
        return self.phase != "generated" and kind.missing is not PositionKind.missing

    def _in_prompt(self, rank: Tensor, length: Tensor) -> Tensor:
        selects = position_kinds()[self.kind].selects
        return (rank >= 0) & (rank < length) & selects(self.numbers, rank, length)

    def _generated(self, rank: Tensor, length: Tensor) -> Tensor:
        selects = position_kinds()[self.kind].selects
        return (rank >= length) & selects(self.numbers, rank - length, None)

    def check(self, lengths: Int[Tensor, " rows"]) -> None:
        """Refuse prompts that lack a token to edit.

        Args:
            lengths: The lengths of prompts, in tokens.

        Raises:
            RoadError: where `at(i)` names a token that a prompt does not have.
        """
        if self.names_tokens and len(lengths):
            problem = position_kinds()[self.kind].missing(self.numbers, lengths)
            if problem:
                raise RoadError(f"position {self} {problem}")

    def indices(self, length: int) -> list[int]:
        """The edited tokens of a prompt.

        Args:
            length: The length of the prompt, in tokens.

        Returns:
            Their indices, in order; none where the position is of generated tokens alone.

        Raises:
            RoadError: where `at(i)` names a token that the prompt does not have.

        Examples:
            >>> Position.parse("last(2)").indices(5)
            [3, 4]
        """
        lengths = torch.tensor([length])
        self.check(lengths)
        edited: list[int] = (
            self.edited(torch.arange(length)[None], lengths)[0].nonzero()[:, 0].tolist()
        )
        return edited

    def __str__(self) -> str:
        return position_kinds()[self.kind].text(self.numbers)


@dataclass(frozen=True)
class Tokens(_EditedTokens):
    """The edited tokens of the prompts of one call, listed row by row.

    Args:
        indices: The indices of each row, from 0; negative ones count from the end of the row's
            prompt.

    Raises:
        RoadError: for anything else.

    Examples:
        >>> Tokens([[0, -1], range(2)])
        Tokens(indices=((0, -1), (0, 1)))
    """

    indices: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        listed = self.indices if isinstance(self.indices, (list, tuple)) else ()
        rows = tuple(_integers(row) or () for row in listed)
        if not all(rows) or not rows:
            raise RoadError(
                f"positions {quoted(self.indices)} are not understood: {expected_positions()}, "
                "or a list of token indices for each row"
            )
        object.__setattr__(self, "indices", rows)

    @property
    def after_prompt(self) -> bool:
        """Whether tokens after the prompt may be edited: none."""
        return False

    def edited(
        self, rank: Int[Tensor, "rows columns"], prompt_length: Int[Tensor, " rows"]
    ) -> Bool[Tensor, "rows columns"]:
        """Which tokens are edited, as Position.edited."""
        longest = max(map(len, self.indices))
        # The last index again, where a row has fewer.
        padded = [(*row, *row[-1:] * (longest - len(row))) for row in self.indices]
        wanted = torch.tensor(padded, device=rank.device)
        wanted = torch.where(wanted < 0, prompt_length[:, None] + wanted, wanted).sort(1).values
        nearest = torch.searchsorted(wanted, rank.contiguous()).clamp(max=longest - 1)
        return wanted.gather(1, nearest) == rank

    def most(self, columns: int) -> int:
        """How many tokens of a row are edited at most.

        Args:
            columns: How many tokens a row has, at most.
        """
        return min(columns, max(map(len, self.indices)))

    def check(self, lengths: Int[Tensor, " rows"]) -> None:
        """Refuse prompts that lack a token to edit.

        Args:
            lengths: The lengths of each row's prompt, in tokens.

        Raises:
            RoadError: where a prompt does not have a token, or the number of rows differs.
        """
        if len(self.indices) != len(lengths):
            raise RoadError(
                f"positions of {len(self.indices)} rows for {len(lengths)}: "
                "expected a list of token indices for each row"
            )
        for row, (indices, length) in enumerate(zip(self.indices, lengths.tolist(), strict=True)):
            for index in indices:
                if not -length <= index < length:
                    raise RoadError(
                        f"position {index} of row {row} is outside its {length} tokens: "
                        f"expected {-length} to {length - 1}"
                    )


PositionLike = Position | Tokens | str | Sequence[Sequence[int]]


def parse_positions(positions: PositionLike) -> Position | Tokens:
    """Read the positions of one call.

    Args:
        positions: A position for all rows, as text or as a Position; or for each row a list of
            token indices.

    Returns:
        The positions.

    Raises:
        RoadError: for anything else.
    """
    if isinstance(positions, (str, Position)):
        return Position.parse(positions)
    return positions if isinstance(positions, Tokens) else Tokens(positions)  # type: ignore[arg-type]


def _integers(listed: object) -> tuple[int, ...] | None:
    """A list, tuple or range of integers as a tuple; None for anything else."""
    if isinstance(listed, range):
        small = max(abs(listed.start), abs(listed.stop)) <= _LARGEST and len(listed) <= _LONGEST
        return tuple(listed) if small else None
    if not isinstance(listed, (list, tuple)):
        return None
    if not all(
        isinstance(number, Integral)
        and not isinstance(number, bool)
        and abs(int(number)) <= _LARGEST
        for number in listed
    ):
        return None
    return tuple(map(int, listed))
