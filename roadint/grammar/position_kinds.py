"""The kinds of positions: `last(n)`, `first(n)`, `all`, `at(i, …)`.

A kind is one class here, with `@position_kind("name", …)`: it selects tokens in a part of a row,
and refuses numbers that select nothing.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from roadint.errors import RoadError

Numbers = tuple[int, ...]


class PositionKind(ABC):
    """A kind of position, which selects tokens of a part of a row.

    A part is a row's prompt, whose length is known, or what follows the prompt, which grows by a
    token at a time and has no end yet.
    """

    name: ClassVar[str]
    forms: ClassVar[tuple[str, ...]]
    implied: ClassVar[Numbers] = ()
    """The numbers of a text that has none."""

    def problem(self, numbers: Numbers, phase: str) -> str | None:
        """What is wrong with a position's numbers, as the end of a message.

        Args:
            numbers: The position's numbers.
            phase: "prompt", "generated" or "both".

        Returns:
            None where nothing is wrong.
        """
        return None

    @abstractmethod
    def selects(
        self,
        numbers: Numbers,
        index: Int[Tensor, "rows columns"],
        length: Int[Tensor, "rows 1"] | None,
    ) -> Bool[Tensor, "rows columns"]:
        """Which tokens of a part of every row are selected; others may have any value.

        Args:
            numbers: The position's numbers.
            index: The index of every token in that part, from 0.
            length: The length of the part, in tokens; None where it has no end yet.

        Returns:
            True where a token is selected.
        """

    def most(self, numbers: Numbers) -> int | None:
        """How many tokens of a prompt are selected at most; None where that depends on it.

        Args:
            numbers: The position's numbers.
        """
        return None

    def missing(self, numbers: Numbers, lengths: Int[Tensor, " rows"]) -> str | None:
        """What is wrong where a prompt lacks a token that the position names.

        Args:
            numbers: The position's numbers.
            lengths: The lengths of at least one prompt, in tokens.

        Returns:
            None where nothing is wrong.
        """
        return None

    def text(self, numbers: Numbers) -> str:
        """The position's text."""
        return f"{self.name}({', '.join(map(str, numbers))})" if numbers else self.name


_KINDS: dict[str, PositionKind] = {}


def position_kind(name: str, *forms: str) -> Callable[[type[PositionKind]], type[PositionKind]]:
    """Decorate a kind of position, which is written `name`.

    Args:
        name: The text before the numbers.
        forms: The forms of the text, for messages.

    Returns:
        The decorator.

    Raises:
        RoadError: where another kind has the name.
    """

    def add(kind: type[PositionKind]) -> type[PositionKind]:
        other = type(_KINDS[name]) if name in _KINDS else kind
        # The same class again where a module or a notebook's cell runs once more.
        if (other.__module__, other.__qualname__) != (kind.__module__, kind.__qualname__):
            raise RoadError(f"two kinds of position are called {name!r}: expected another name")
        kind.name, kind.forms = name, forms
        _KINDS[name] = kind()
        return kind

    return add


def position_kinds() -> Mapping[str, PositionKind]:
    """All kinds of positions, by name."""
    return _KINDS


def expected_positions() -> str:
    """The end of a message where a position is not understood."""
    *forms, last = [f"'{form}'" for kind in _KINDS.values() for form in kind.forms]
    return f"expected {', '.join(forms)} or {last}"


class _Counting(PositionKind):
    """A kind that needs one count."""

    implied = (1,)

    def problem(self, numbers: Numbers, phase: str) -> str | None:
        if len(numbers) == 1 and numbers[0] >= 1:
            return None
        return f"needs one count of at least 1, such as {self.name}(1)"

    def most(self, numbers: Numbers) -> int | None:
        return numbers[0]


@position_kind("last", "last", "last(n)")
class _Last(_Counting):
    """The last n tokens; after the prompt all tokens, since every one is the last once."""

    def selects(self, numbers: Numbers, index: Tensor, length: Tensor | None) -> Tensor:
        return index >= (0 if length is None else length - numbers[0])

    def text(self, numbers: Numbers) -> str:
        return self.name if numbers == self.implied else super().text(numbers)


@position_kind("first", "first(n)")
class _First(_Counting):
    """The first n tokens, of the prompt or of what follows it."""

    def selects(self, numbers: Numbers, index: Tensor, length: Tensor | None) -> Tensor:
        return index < numbers[0]


@position_kind("all", "all")
class _All(PositionKind):
    """Every token."""

    def problem(self, numbers: Numbers, phase: str) -> str | None:
        return "takes no numbers: expected 'all'" if numbers else None

    def selects(self, numbers: Numbers, index: Tensor, length: Tensor | None) -> Tensor:
        return torch.ones_like(index, dtype=torch.bool)


@position_kind("at", "at(i, …)")
class _At(PositionKind):
    """Tokens by their indices, from 0; in the prompt, negative ones count from its end."""

    def problem(self, numbers: Numbers, phase: str) -> str | None:
        if not numbers:
            return "names no token: expected at least one index, such as 'at(0)' or 'at(-1)'"
        if phase != "prompt" and min(numbers) < 0:
            return (
                f"counts from the end, but phase {phase!r} has no end yet: expected indices from 0"
            )
        return None

    def selects(self, numbers: Numbers, index: Tensor, length: Tensor | None) -> Tensor:
        selected = torch.zeros_like(index, dtype=torch.bool)
        for number in numbers:
            selected |= index == (number if number >= 0 or length is None else length + number)
        return selected

    def most(self, numbers: Numbers) -> int | None:
        return len(numbers)

    def missing(self, numbers: Numbers, lengths: Tensor) -> str | None:
        shortest = int(lengths.min())
        if all(-shortest <= index < shortest for index in numbers):
            return None
        return (
            f"is outside a prompt of {shortest} tokens: "
            f"expected indices from {-shortest} to {shortest - 1}"
        )
