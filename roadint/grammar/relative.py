"""A subspace as one text for many widths."""

from collections.abc import Iterable, Sequence

from roadint.errors import RoadError, listing, quoted
from roadint.grammar.ranges import write_slice
from roadint.grammar.subspace import Subspace, SubspaceLike


def relative_text(spec: SubspaceLike, widths: Iterable[int]) -> str:
    """Write a subspace so that a checkpoint can keep it.

    Args:
        spec: Any form that Subspace.parse reads.
        widths: The widths, in dims.

    Returns:
        The text, relative to the width where the form is.

    Raises:
        RoadError: where the form is unknown, or no text means the same at all widths.

    Examples:
        >>> relative_text(slice(8, None), [16, 32])
        '[8, d)'
        >>> relative_text("[0, d/2)", [16, 32])
        '[0, d/2)'
    """
    subspaces = {width: Subspace.parse(spec, width) for width in widths}
    if isinstance(spec, str):
        return " ".join(spec.split())
    texts = set(map(str, subspaces.values()))
    text = texts.pop() if len(texts) == 1 else _without_width(spec)
    if all(_holds(text, width, subspace) for width, subspace in subspaces.items()):
        return text
    raise RoadError(
        f"subspace {quoted(spec)} is not the same at widths {listing(subspaces)}: "
        "expected text such as '[0, d/2)'"
    )


def _without_width(spec: SubspaceLike) -> str:
    if isinstance(spec, slice):
        return write_slice(spec)
    if isinstance(spec, range):
        return f"[{spec.start}, {spec.stop})"
    if isinstance(spec, Sequence) and not isinstance(spec, str):
        if len(spec) == 2 and all(isinstance(boundary, (int, str)) for boundary in spec):
            return f"[{spec[0]}, {spec[1]})"
        return " | ".join(map(_without_width, spec))
    return str(spec)


def _holds(text: str, width: int, subspace: Subspace) -> bool:
    try:
        return Subspace.parse(text, width) == subspace
    except RoadError:
        return False
