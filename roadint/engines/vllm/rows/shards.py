"""Where the outputs of a checkpoint's linear layers lie in the fused, sharded layers of an engine.

A checkpoint names layers as transformers does: q_proj, k_proj, v_proj. vLLM runs one qkv_proj for
the three, and with tensor parallelism every process has some of its heads. Where transformers has
one layer for the three too, it may have the heads in another order.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Piece:
    """A part of a target's output in one process.

    Args:
        module: The path of the module that computes it.
        offset: Where it begins in the module's output.
        start: Where it begins in the target's output.
        width: How many dims it has.
        whole: How many dims the target's output has in all processes together.
    """

    module: str
    offset: int
    start: int
    width: int
    whole: int


@dataclass(frozen=True)
class Part:
    """One of the matrices that a fused layer holds, before it is sharded.

    Args:
        width: The width of its output, in dims, in all processes together.
        copies: How many processes hold the same part of it, as with fewer heads than processes.
    """

    width: int
    copies: int = 1


def pieces_of(
    module: str,
    names: Sequence[str],
    parts: Sequence[Part],
    rank: int,
    processes: int,
    groups: int = 1,
) -> dict[str, list[Piece]]:
    """The pieces of a module's output in one process.

    Args:
        module: The module's path.
        names: The targets that it computes: one for every part, or one for all parts together.
        parts: The matrices that it holds, in order.
        rank: The number of the process.
        processes: How many processes share the output; 1 where every process has all of it.
        groups: In how many groups one target for all parts has them: each group has a share of
            every part, one after another. With 1 the parts lie end to end.

    Returns:
        Target → its pieces.

    Examples:
        Heads of 4 dims: 4 query heads and 1 of keys, which 2 processes copy.

        >>> parts = [Part(16), Part(4, copies=2), Part(4, copies=2)]
        >>> names = ["q_proj", "k_proj", "v_proj"]
        >>> pieces_of("qkv_proj", names, parts, rank=1, processes=2)["q_proj"]
        [Piece(module='qkv_proj', offset=0, start=8, width=8, whole=16)]
    """
    pieces: dict[str, list[Piece]] = {}
    offset = before = 0
    one_name = len(names) == 1
    together = sum(part.width for part in parts)
    for index, part in enumerate(parts):
        width = part.width * part.copies // processes
        first = rank // part.copies * width
        name = names[0] if one_name else names[index]
        whole, count = (together, groups) if one_name else (part.width, 1)
        share, period = part.width // count, whole // count
        for group in range(count):
            low, high = max(first, group * share), min(first + width, (group + 1) * share)
            if low < high:
                start = before + group * (period - share) + low
                piece = Piece(module, offset + low - first, start, high - low, whole)
                _append(pieces.setdefault(name, []), piece)
        offset += width
        before += share if one_name else 0
    return pieces


def _append(pieces: list[Piece], piece: Piece) -> None:
    """Add a piece; one that goes on where the last ends, in both outputs, makes that longer."""
    if pieces:
        last = pieces[-1]
        end = last.offset + last.width, last.start + last.width
        if end == (piece.offset, piece.start):
            pieces[-1] = replace(last, width=last.width + piece.width)
            return
    pieces.append(piece)
