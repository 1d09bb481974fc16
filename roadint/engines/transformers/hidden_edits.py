"""The edits of one call at the sites of interventions, as hooks that run in every forward pass."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from roadint.architecture.outputs import hidden_of, with_hidden
from roadint.engines.call import Call
from roadint.engines.interventions import LoweredIntervention
from roadint.engines.transformers.partial import Enough
from roadint.engines.transformers.passes import Passes
from roadint.engines.transformers.view import After
from roadint.errors import RoadError
from roadint.grammar.position import Position, Tokens
from roadint.interventions.base import full_precision
from roadint.rotation.kernels.operation import kernel_for, turn


class SiteTokens:
    """The tokens of one call at one site, pass by pass.

    Args:
        path: The path of the module whose output holds the hidden states.
        layer: The layer, for messages.
        width: The width of the hidden states.
        position: The tokens that are meant.
        acting: True for the rows of the call that are meant.
        call: The call.
    """

    def __init__(
        self,
        path: str,
        layer: int,
        width: int,
        position: Position | Tokens,
        acting: Bool[Tensor, " rows"],
        call: Call,
    ) -> None:
        self.path, self.layer, self._width = path, layer, width
        self._position, self._acting, self._call = position, acting, call
        self._last_pass = 0

    def of_pass(
        self, hidden: Float[Tensor, "rows columns width"], passes: Passes
    ) -> Bool[Tensor, "rows columns"] | None:
        """True for the tokens of the pass that are meant; None where none can be.

        Raises:
            RoadError: where the module gives hidden states of another shape than the pass has.
        """
        self._last_pass = passes.number
        passes.check_gradients(self.path)
        self.check_shape(hidden, passes)
        wanted = self.wanted(passes)
        return None if wanted is None else wanted.to(hidden.device)

    def wanted(self, passes: Passes) -> Bool[Tensor, "rows columns"] | None:
        """True for the tokens of the pass that are meant; None where none can be."""
        start, stop = passes.start, passes.start + passes.columns
        if start >= self._call.columns and not self._position.after_prompt:
            return None
        wanted = self._call.edited(self._position, start, stop) & self._acting[:, None]
        copies = self.copies(passes)
        return wanted.repeat_interleave(copies, dim=0) if copies > 1 else wanted

    def most(self, passes: Passes) -> int:
        """How many tokens of a pass are meant, at most."""
        return passes.rows * self._position.most(passes.columns)

    def copies(self, passes: Passes) -> int:
        """How often every row of the call is in the pass: beams repeat rows."""
        copies, left = divmod(passes.rows, len(self._acting))
        if left or not copies:
            raise RoadError(
                f"a pass of {passes.rows} rows in a call of {len(self._acting)}: expected each as "
                "often as any other"
            )
        return copies

    def check_acted(self, passes: Passes) -> None:
        """Check that the module ran in the last pass.

        Raises:
            RoadError: where it did not, so that nothing acted.
        """
        if self._last_pass != passes.number:
            raise RoadError(
                f"{self.path} did not run in this pass, so the edit at layer {self.layer} did not "
                "act: expected a model that calls it for all tokens"
            )

    def check_shape(self, hidden: Any, passes: Passes) -> None:
        """Check that a module gives hidden states of the pass.

        Raises:
            RoadError: where they have another shape.
        """
        expected = (passes.rows, passes.columns, self._width)
        if not torch.is_tensor(hidden) or tuple(hidden.shape) != expected:
            shape = tuple(hidden.shape) if torch.is_tensor(hidden) else type(hidden).__name__
            raise RoadError(
                f"{self.path} gives hidden states of shape {shape}: expected [rows, columns, "
                f"width], so {expected}"
            )
        self.check_columns(passes)

    def check_columns(self, passes: Passes) -> None:
        """Check that the first pass has the columns of the call.

        Raises:
            RoadError: where it has more.
        """
        stop = passes.start + passes.columns
        if passes.number == 1 and stop > self._call.columns and not passes.drafted:
            raise RoadError(
                f"the model runs {stop} columns for the {self._call.columns} of the call: it puts "
                "others beside them"
            )


class HiddenEdits:
    """What the interventions of a model do in one call.

    Args:
        lowered: The interventions that act, in order.
        call: The call.
    """

    def __init__(self, lowered: Sequence[LoweredIntervention], call: Call) -> None:
        self._edits = [(edit, tokens_of(edit, call)) for edit in lowered]

    @property
    def learns(self) -> bool:
        """Whether a parameter of what acts requires gradients."""
        return any(
            parameter.requires_grad
            for edit, _ in self._edits
            for parameter in edit.intervention.parameters()
        )

    def hooks(self, model: nn.Module, passes: Passes) -> Iterator[tuple[nn.Module, After]]:
        """The modules at which an intervention acts, and the hooks that run after them."""
        for edit, tokens in self._edits:
            yield model.get_submodule(edit.path), _hook(edit, tokens, passes)

    def finish(self, passes: Passes) -> None:
        """Check, after a pass, that every edit acted.

        Raises:
            RoadError: where one did not.
        """
        for _, tokens in self._edits:
            tokens.check_acted(passes)


class Reading:
    """Reads hidden states at some tokens, without an edit.

    When all sites are read, `Enough` ends the forward pass: no layer above them runs.

    Args:
        tokens: For each site, the tokens whose states are read.
    """

    learns = False

    def __init__(self, tokens: Sequence[SiteTokens]) -> None:
        self._tokens = tokens
        self.states: list[list[Float[Tensor, "tokens width"]]] = [[] for _ in tokens]

    def hooks(self, model: nn.Module, passes: Passes) -> Iterator[tuple[nn.Module, After]]:
        """The modules at the sites, and the hooks that run after them."""
        for index, tokens in enumerate(self._tokens):
            yield model.get_submodule(tokens.path), self._hook(index, passes)

    def finish(self, passes: Passes) -> None:
        """Check, after a pass, that every site was read."""
        for tokens in self._tokens:
            tokens.check_acted(passes)

    def _hook(self, index: int, passes: Passes) -> After:
        def read(module: nn.Module, args: Any, output: Any) -> None:
            hidden = hidden_of(output)
            wanted = self._tokens[index].of_pass(hidden, passes)
            if wanted is None:
                self.states[index] = [states[:0] for states in hidden]
            else:
                counts = wanted.sum(1).tolist()
                self.states[index] = list(torch.split(hidden[wanted], counts))
            if all(self.states):
                raise Enough

        return read


def tokens_of(edit: LoweredIntervention, call: Call) -> SiteTokens:
    """The tokens of a call that an intervention edits."""
    intervention = edit.intervention
    where = (edit.path, intervention.layer, intervention.width)
    return SiteTokens(*where, edit.position, edit.acting, call)


def _hook(edit: LoweredIntervention, tokens: SiteTokens, passes: Passes) -> After:
    def act(module: nn.Module, args: Any, output: Any) -> Any:
        hidden = hidden_of(output)
        wanted = tokens.of_pass(hidden, passes)
        if wanted is None:
            return None
        row_of_call = torch.arange(passes.rows, device=hidden.device) // tokens.copies(passes)
        edited = _turned(edit, hidden, wanted, row_of_call)
        if edited is None:
            edited = _edited(
                edit, hidden, _places(wanted, tokens.most(passes)), row_of_call, passes
            )
        return with_hidden(output, edited)

    return act


def _turned(
    edit: LoweredIntervention,
    hidden: Float[Tensor, "rows columns width"],
    wanted: Bool[Tensor, "rows columns"],
    row_of_call: Int[Tensor, " rows"],
) -> Tensor | None:
    """The hidden states with some tokens turned in one launch; None for another kind of edit.

    On a CPU, too, where taking the few tokens out and putting them back is cheaper.
    """
    turned = edit.intervention.as_turn(edit.rows)
    if turned is None or turned[1] is not None or kernel_for(hidden) is None:
        return None
    rotation = turned[0]
    index = torch.where(wanted, row_of_call[:, None], -1).flatten()
    return turn(hidden, rotation.u, rotation.v, rotation.group, index)


@dataclass(frozen=True)
class _Places:
    """Where the edited tokens of a pass are, without waiting for the device.

    Args:
        rows: The row of each; padded with any where `order` is not None.
        columns: The column of each.
        order: For every token of the pass its place in this list, and whether it is in it; None
            where the list is exact.
    """

    rows: Int[Tensor, " tokens"]
    columns: Int[Tensor, " tokens"]
    order: tuple[Int[Tensor, "rows columns"], Bool[Tensor, "rows columns"]] | None


def _places(wanted: Bool[Tensor, "rows columns"], most: int) -> _Places:
    if wanted.device.type == "cpu":
        rows, columns = wanted.nonzero(as_tuple=True)
        return _Places(rows, columns, None)
    flat = wanted.flatten()
    first = flat.to(torch.uint8).argsort(descending=True, stable=True)[:most]
    order = (flat.cumsum(0) - 1).clamp(min=0).view_as(wanted)
    per_row = wanted.shape[1]
    return _Places(first // per_row, first % per_row, (order, wanted))


def _edited(
    edit: LoweredIntervention,
    hidden: Float[Tensor, "rows columns width"],
    places: _Places,
    row_of_call: Int[Tensor, " rows"],
    passes: Passes,
) -> Float[Tensor, "rows columns width"]:
    """The hidden states with some tokens edited."""
    rows, columns = places.rows, places.columns
    if not len(rows):
        return hidden
    source = None
    if edit.source is not None:
        source = edit.source.at(row_of_call[rows], columns + passes.start)
    states = edit.rows.row(row_of_call[rows])
    with full_precision(hidden):
        edited = edit.intervention.edit(hidden[rows, columns], states, source)
    if places.order is None:
        return hidden.index_put((rows, columns), edited)
    order, wanted = places.order
    spread = edited.index_select(0, order.flatten()).view(*order.shape, -1)
    return torch.where(wanted[..., None], spread.to(hidden.dtype), hidden)
