"""Steps: the requests of a process, and which token of a step takes which row of the tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from roadint.engines.vllm.registry import Registry
from roadint.engines.vllm.rows.hidden_rows import HiddenRows
from roadint.engines.vllm.rows.linear_rows import LinearRows
from roadint.engines.vllm.rows.plan import Plan
from roadint.engines.vllm.rows.prompt_edits import Chunk, PromptEdits, edited_in, prompt_edits
from roadint.engines.vllm.rows.served_table import ServedTable
from roadint.engines.vllm.served import Served
from roadint.errors import RoadError

_KEPT = 4  # times what a step needs at most, as far as they take
_KEPT_BYTES = 64 << 20


@dataclass(frozen=True)
class Limits:
    """What a step has at most.

    Args:
        requests: How many requests.
        tokens: How many tokens, padding included.
    """

    requests: int
    tokens: int


class Steps:
    """What roadint does in one process of an engine, step by step.

    Args:
        registry: The checkpoints.
        hidden: The sites.
        linear: The linear layers.
        limits: What a step has at most.
        device: The device of the model.
    """

    def __init__(
        self,
        registry: Registry,
        hidden: HiddenRows,
        linear: LinearRows,
        limits: Limits,
        device: torch.device,
    ) -> None:
        self.registry, self.hidden, self.linear = registry, hidden, linear
        self.hidden_table = _table(hidden, limits.requests * hidden.codes, limits, device)
        self.linear_table = _table(linear, limits.requests, limits, device)
        self._edits: dict[str, PromptEdits] = {}
        self._adapters: dict[str, Plan] = {}
        self._filled: Any = ()  # what the table of adapters was filled for

    def check(self, served: Served) -> None:
        """Refuse a checkpoint for which this process has no place.

        Raises:
            RoadError: where it has none.
        """
        self.linear.check(served)
        self.hidden.check(served, self.registry.served.values())

    def add(self, request: str, resolved: Any, prompt_length: int) -> None:
        """A request comes, or comes again.

        Args:
            request: Its id.
            resolved: What it asks for; None for the base model.
            prompt_length: The length of its prompt, in tokens.

        Raises:
            RoadError: where its checkpoint is not here, which the engine has checked before.
        """
        self.remove(request)
        if resolved is None:
            return
        plan = self.registry.plan(resolved)
        if plan.edits:
            self._edits[request] = prompt_edits(plan, prompt_length)
        if plan.adapters:
            self._adapters[request] = plan

    def remove(self, request: str) -> None:
        """A request is over."""
        self._edits.pop(request, None)
        self._adapters.pop(request, None)

    @property
    def bytes(self) -> int:
        """The memory of the tables."""
        tables = (self.hidden_table, self.linear_table)
        parts = [part for table in tables for part in (table.u, table.v) if part is not None]
        return sum(part.nbytes for part in parts)

    def __len__(self) -> int:
        return len(self._edits.keys() | self._adapters.keys())

    def clear(self) -> None:
        """Nothing is turned in the step that comes: it is a trial, or captures a graph."""
        self._filled = ()
        self.hidden_table.clear_step()
        self.linear_table.clear_step()

    def fill(
        self,
        requests: Sequence[str],
        starts: Int[np.ndarray, " requests"],
        counts: Int[np.ndarray, " requests"],
    ) -> None:
        """Say which token of the step that comes takes which row.

        Args:
            requests: The requests of the step, whose tokens follow each other in this order.
            starts: For each the rank of its first token in the step.
            counts: For each how many tokens it has in the step.
        """
        self._fill_hidden(requests, starts, counts)
        self._fill_linear(requests, counts)

    def _fill_hidden(
        self,
        requests: Sequence[str],
        starts: Int[np.ndarray, " requests"],
        counts: Int[np.ndarray, " requests"],
    ) -> None:
        chunks = self._chunks(requests, starts, counts) if self._edits else []
        edited = edited_in(chunks)
        if not len(edited.tokens):
            self.hidden_table.clear_step()
            return
        plans = {chunk.edits.plan.hidden_key: chunk.edits.plan for chunk in chunks}
        numbers = {key: number for number, key in enumerate(plans)}
        of_chunk = np.array([numbers[chunk.edits.plan.hidden_key] for chunk in chunks])
        codes, code_of_token = np.unique(edited.codes, return_inverse=True)
        pair_of_token = of_chunk[edited.chunks] * len(codes) + code_of_token
        taken = np.bincount(pair_of_token) > 0
        listed = list(plans)
        pairs = (divmod(pair, len(codes)) for pair in np.flatnonzero(taken).tolist())
        self.hidden_table.set_step(
            edited.tokens,
            [(listed[number], int(codes[code])) for number, code in pairs],
            (taken.cumsum() - 1)[pair_of_token],
            lambda keys: self.hidden.rows([(plans[key], code) for key, code in keys]),
            int(counts.sum()),
        )

    def _chunks(
        self,
        requests: Sequence[str],
        starts: Int[np.ndarray, " requests"],
        counts: Int[np.ndarray, " requests"],
    ) -> list[Chunk]:
        """The tokens of the requests that may be edited in a step."""
        chunks = []
        stops, firsts = (starts + counts).tolist(), (counts.cumsum() - counts).tolist()
        for request, start, stop, first in zip(
            requests, starts.tolist(), stops, firsts, strict=True
        ):
            edits = self._edits.get(request)
            if edits is not None and edits.reaches(start):
                chunks.append(Chunk(edits, start, stop, first))
        return chunks

    def _fill_linear(self, requests: Sequence[str], counts: Int[np.ndarray, " requests"]) -> None:
        plans = [self._adapters.get(request) for request in requests] if self._adapters else []
        if not any(plan is not None for plan in plans):
            self._filled = ()
            self.linear_table.clear_step()
            return
        filled = plans, counts.tobytes()
        if filled == self._filled:  # one decoding step after another
            return
        keys: dict[Any, int] = {}
        by_key: dict[Any, Plan] = {}
        of_request = np.full(len(requests), -1, dtype=np.int64)
        for number, plan in enumerate(plans):
            if plan is not None:
                of_request[number] = keys.setdefault(plan.adapter_key, len(keys))
                by_key[plan.adapter_key] = plan
        of_token = np.repeat(of_request, counts)
        tokens = np.flatnonzero(of_token >= 0)
        self.linear_table.set_step(
            tokens,
            list(keys),
            of_token[tokens],
            lambda keys: self.linear.rows([by_key[key] for key in keys]),
            len(of_token),
        )
        self._filled = filled


def _table(
    rows: HiddenRows | LinearRows, most: int, limits: Limits, device: torch.device
) -> ServedTable:
    """A table that holds what one step needs, and where rows are small what others needed before.

    Args:
        rows: What makes its rows.
        most: How many of them one step needs at most, if it has as many tokens.
        limits: What a step has at most.
        device: Where it lies.
    """
    needed = min(most, limits.tokens)  # each token takes one row
    size = max(1, rows.places.blocks * 8 * (2 if rows.mirrored else 1))
    capacity = max(needed, min(_KEPT * needed, _KEPT_BYTES // size))
    return ServedTable(rows.places, capacity, limits.tokens, rows.mirrored, device)


def not_run(module: str) -> RoadError:
    """The error where a layer was armed, and a forward pass did not run it."""
    return RoadError(
        f"{module} did not run in a forward pass, so its edit could not act: expected a model that "
        "calls it for all tokens"
    )
