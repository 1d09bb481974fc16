"""A worker of an engine: a model that is armed, and the steps that it runs (needs vLLM)."""

import logging
from typing import Any

from torch import nn

from roadint.engines.vllm.arming import arm, device_of
from roadint.engines.vllm.core import asked_of
from roadint.engines.vllm.front import base_of, prompt_length_of
from roadint.engines.vllm.model_parts import ModelParts
from roadint.engines.vllm.operations import Armed, ArmedLinear, ArmedSite, activate
from roadint.engines.vllm.registry import Registry
from roadint.engines.vllm.rows.hidden_rows import HiddenRows
from roadint.engines.vllm.rows.linear_rows import LinearRows
from roadint.engines.vllm.served import Served, open_served
from roadint.engines.vllm.settings import ARMED, KEY, Settings
from roadint.engines.vllm.steps import Limits, Steps, not_run
from roadint.errors import RoadError, first_line

_LARGE = 1e9  # bytes of tables
logger = logging.getLogger("vllm.roadint")  # vLLM shows what lies below its own name

ATTRIBUTE = "roadint_worker"
"""What it is called in a model that is armed."""


class RoadWorker:
    """What roadint has in one worker.

    Args:
        model: The model, whose layers are armed here.
        vllm_config: The engine's configuration.
        settings: roadint's part of it.

    Raises:
        RoadError: where a checkpoint does not fit.
    """

    def __init__(self, model: nn.Module, vllm_config: Any, settings: Settings) -> None:
        base = base_of(vllm_config)
        self.registry = Registry.of(settings, base)
        served = list(self.registry.served.values())
        parts = ModelParts(model, base.layers)
        hidden = HiddenRows(served, settings.layers, base.width)
        linear = LinearRows(served, *parts.linear(), settings.adapters, parts.name_of)
        scheduler = vllm_config.scheduler_config
        captured = vllm_config.compilation_config.max_cudagraph_capture_size or 0
        tokens = max(scheduler.max_num_batched_tokens, captured)
        limits = Limits(scheduler.max_num_seqs, tokens)
        self.steps = Steps(self.registry, hidden, linear, limits, device_of(model))
        self._armed = Armed(self.steps.hidden_table, self.steps.linear_table)
        arm(parts, hidden, linear, self._armed)
        # What is armed for checkpoints that come later may be a layer that the model does not call.
        of_served = set().union(*(linear.modules_of(one) for one in served))
        self._needed = {site.name for site in self._armed.sites} | of_served
        self._ran = False
        # Graphs are cached by the configuration, and hold the numbers of what is armed.
        configured = vllm_config.additional_config
        armed = {**configured[KEY], ARMED: self._described()}
        vllm_config.additional_config = {**configured, KEY: armed}
        logger.info(
            "roadint: %d sites and %d linear layers armed, tables of %.1f MB",
            len(self._armed.sites),
            len(self._armed.linears),
            self.steps.bytes / 1e6,
        )
        if self.steps.bytes > _LARGE:
            logger.warning(
                "roadint: the table of adapters takes %.1f GB, a row for each of max_num_seqs "
                "requests: a smaller max_num_seqs leaves more to the KV cache",
                self.steps.bytes / 1e9,
            )

    def _described(self) -> list[Any]:
        return [[part.name, [str(place) for place in part.places]] for part in self._parts]

    @property
    def _parts(self) -> list[ArmedSite | ArmedLinear]:
        return [*self._armed.sites, *self._armed.linears]

    def add(self, data: Any) -> None:
        """A request comes: `data` is the scheduler's NewRequestData."""
        asked = asked_of(data.sampling_params)
        if asked is not None:
            self.steps.add(data.req_id, asked, prompt_length_of(data))
        else:
            self.steps.remove(data.req_id)

    def begin(self) -> None:
        """A forward pass comes."""
        activate(self._armed)

    def begin_trial(self) -> None:
        """A forward pass comes that is no request's."""
        self.steps.clear()
        activate(self._armed)

    def check_ran(self) -> None:
        """Check, after the first forward pass, that all that checkpoints edit was run.

        Raises:
            RoadError: where something was not, so that an edit of it could not act.
        """
        if not self._ran:
            for part in self._parts:
                if not part.ran and part.name in self._needed:
                    raise not_run(part.name)
            self._ran = True

    def load(self, label: str, path: str, fingerprint: str) -> str | None:
        """Serve a checkpoint; the reason where it can't be."""
        try:
            served = open_served(path, self.registry.base)
            if served.fingerprint != fingerprint:
                raise RoadError(f"{path} changed while it was loaded: load it again")
            self.steps.check(served)
            self._check_run(served)
            self.registry.load(label, served)
        except (RoadError, OSError) as error:
            return str(error) if isinstance(error, RoadError) else first_line(error)
        return None

    def _check_run(self, served: Served) -> None:
        """Refuse adapters on layers that the model does not call, if it has run at all by now."""
        needed = self.steps.linear.modules_of(served)
        if not any(part.ran for part in self._parts):
            self._needed |= needed
            return
        for part in self._armed.linears:
            if part.name in needed and not part.ran:
                raise not_run(part.name)

    def unload(self, label: str, in_use: list[str]) -> None:
        """Serve a checkpoint no longer."""
        if label in self.registry.served:
            self.registry.unload(label)
        self.registry.forget(in_use)


def worker_of(runner: Any) -> RoadWorker | None:
    """What roadint has in a model runner's model; None where the engine has no configuration of it.

    Raises:
        RoadError: where it should have something, and a loader went another way.
    """
    found: RoadWorker | None = getattr(runner.get_model(), ATTRIBUTE, None)
    if found is None and Settings.of(runner.vllm_config.additional_config) is not None:
        raise RoadError(
            f"load_format={runner.vllm_config.load_config.load_format!r} loads models in a way of "
            "its own, in which nothing was armed: expected 'auto'"
        )
    return found


def wrap_worker(worker: Any) -> None:
    """Let an engine's core load and unload checkpoints in its workers.

    Args:
        worker: vLLM's class.
    """

    def roadint_load(self: Any, label: str, path: str, fingerprint: str) -> str | None:
        found = worker_of(self.model_runner)
        return "nothing is armed" if found is None else found.load(label, path, fingerprint)

    def roadint_unload(self: Any, label: str, in_use: list[str]) -> None:
        found = worker_of(self.model_runner)
        if found is not None:
            found.unload(label, in_use)

    worker.roadint_load, worker.roadint_unload = roadint_load, roadint_unload
