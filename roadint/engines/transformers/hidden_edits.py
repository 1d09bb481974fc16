"""The edits of one call at the sites of interventions, as hooks that run in every forward pass."""

from collections.abc import Iterator, Sequence
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

RowsAndColumns = tuple[Int[Tensor, " tokens"], Int[Tensor, " tokens"]]
"""The rows and columns of some tokens of a pass."""


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
    ) -> RowsAndColumns:
        """The rows and columns of the pass that hold the tokens.

        Raises:
            RoadError: where the module gives hidden states of another shape than the pass has.
        """
        self._last_pass = passes.number
        passes.check_gradients(self.path)
        self._check_shape(hidden, passes)
        start, stop = passes.start, passes.start + passes.columns
        if start >= self._call.columns and not self._position.after_prompt:
            none = torch.empty(0, dtype=torch.long, device=hidden.device)
            return none, none
        wanted = self._call.edited(self._position, start, stop) & self._acting[:, None]
        wanted = wanted.repeat_interleave(self.copies(passes), dim=0)
        rows, columns = wanted.to(hidden.device).nonzero(as_tuple=True)
        return rows, columns

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

    def _check_shape(self, hidden: Any, passes: Passes) -> None:
        expected = (passes.rows, passes.columns, self._width)
        if not torch.is_tensor(hidden) or tuple(hidden.shape) != expected:
            shape = tuple(hidden.shape) if torch.is_tensor(hidden) else type(hidden).__name__
            raise RoadError(
                f"{self.path} gives hidden states of shape {shape}: expected [rows, columns, "
                f"width], so {expected}"
            )
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
        self._edits = [(edit, _tokens(edit, call)) for edit in lowered]

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
            rows, columns = self._tokens[index].of_pass(hidden, passes)
            counts = torch.bincount(rows, minlength=len(hidden)).tolist()
            self.states[index] = list(torch.split(hidden[rows, columns], counts))
            if all(self.states):
                raise Enough

        return read


def _tokens(edit: LoweredIntervention, call: Call) -> SiteTokens:
    intervention = edit.intervention
    where = (edit.path, intervention.layer, intervention.width)
    return SiteTokens(*where, edit.position, edit.acting, call)


def _hook(edit: LoweredIntervention, tokens: SiteTokens, passes: Passes) -> After:
    def act(module: nn.Module, args: Any, output: Any) -> Any:
        hidden = hidden_of(output)
        rows, columns = tokens.of_pass(hidden, passes)
        if not len(rows):
            return None
        row_of_call = rows // tokens.copies(passes)
        source = None
        if edit.source is not None:
            source = edit.source.at(row_of_call, columns + passes.start)
        edited = edit.intervention.edit(hidden[rows, columns], edit.rows.row(row_of_call), source)
        return with_hidden(output, hidden.index_put((rows, columns), edited))

    return act
