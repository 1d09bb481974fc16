"""Steps: the requests of a process, and which token of a step takes which row of the tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from roadint.engines.vllm.hidden_rows import HiddenRows
from roadint.engines.vllm.linear_rows import LinearRows
from roadint.engines.vllm.plan import Plan, PromptEdits
from roadint.engines.vllm.registry import Registry
from roadint.engines.vllm.served_table import ServedTable
from roadint.errors import RoadError


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
        most = limits.requests
        self.hidden_table = ServedTable(
            hidden.places, most * hidden.codes, limits.tokens, hidden.mirrored, device
        )
        self.linear_table = ServedTable(linear.places, most, limits.tokens, linear.mirrored, device)
        self._edits: dict[str, PromptEdits] = {}
        self._adapters: dict[str, Plan] = {}

    def check(self, served: Any) -> None:
        """Refuse a checkpoint for which this process has no place.

        Raises:
            RoadError: where it has none.
        """
        self.linear.check(served)
        self.hidden.check(served)

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
            self._edits[request] = PromptEdits(plan, prompt_length)
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
        pending = []
        if self._edits:
            known, ranks = self._edits, starts.tolist()
            for number, request in enumerate(requests):
                edits = known.get(request)
                if edits is not None and edits.reaches(ranks[number]):
                    pending.append((number, edits))
        if not pending:
            self.hidden_table.clear_step()
            return
        firsts = np.cumsum(counts) - counts
        keys: dict[Any, int] = {}
        plans: dict[Any, Plan] = {}
        tokens: list[np.ndarray] = []
        of_token: list[np.ndarray] = []
        for number, edits in pending:
            start, plan = int(starts[number]), edits.plan
            edited, codes = edits.between(start, start + int(counts[number]))
            if not len(edited):
                continue
            different = np.unique(codes).tolist()
            numbers = np.zeros(different[-1] + 1, dtype=np.int64)
            for code in different:
                key = (plan.hidden_key, code)
                numbers[code] = keys.setdefault(key, len(keys))
                plans[key] = plan
            tokens.append(edited - start + int(firsts[number]))
            of_token.append(numbers[codes])
        if not tokens:
            self.hidden_table.clear_step()
            return
        self.hidden_table.set_step(
            np.concatenate(tokens).astype(np.int64),
            list(keys),
            np.concatenate(of_token),
            lambda key: self.hidden.row(plans[key], key[1]),
            int(counts.sum()),
        )

    def _fill_linear(self, requests: Sequence[str], counts: Int[np.ndarray, " requests"]) -> None:
        plans = [self._adapters.get(request) for request in requests] if self._adapters else []
        if not any(plan is not None for plan in plans):
            self.linear_table.clear_step()
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
            lambda key: self.linear.row(by_key[key]),
            len(of_token),
        )


def not_run(module: str) -> RoadError:
    """The error where a layer was armed, and a forward pass did not run it."""
    return RoadError(
        f"{module} did not run in a forward pass, so its edit could not act: expected a model that "
        "calls it for all tokens"
    )
