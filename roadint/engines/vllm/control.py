"""Checkpoints that come and go while an engine serves (needs vLLM)."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from roadint.engines.vllm.front import check_arguments
from roadint.engines.vllm.registry import Registry
from roadint.engines.vllm.served import Served, open_served
from roadint.engines.vllm.settings import KEY, check_served_label
from roadint.errors import RoadError

Answers = Sequence[dict[str, Any]]
"""What each engine says."""


def served(engine: Any) -> dict[str, dict[str, Any]]:
    """The checkpoints of an engine.

    Args:
        engine: vLLM's `LLM`, `AsyncLLM` or `LLMEngine`.

    Returns:
        Label → "path", "fingerprint" and "names" (without the label).

    Raises:
        RoadError: where the engine was started without roadint.
    """
    return {label: part.about() for label, part in _front(engine).served.items()}


def check(engine: Any, arguments: Mapping[str, Any]) -> None:
    """Check a request's further arguments, as far as can be told before its prompt is read.

    Args:
        engine: As in `served`.
        arguments: Those of a request, such as {"roadint": "german"}.

    Raises:
        RoadError: where a composition is not understood, or would not act.
    """
    asked = arguments.get(KEY)
    if asked is None and _registry(engine) is None:
        return  # what others ask of an engine without roadint
    front = _front(engine)
    check_arguments(arguments)
    if asked is not None:
        front.resolve(asked)


async def load(engine: Any, label: str, path: str) -> None:
    """Serve a further checkpoint.

    Args:
        engine: vLLM's `AsyncLLM`.
        label: Its label; "" for none.
        path: A folder or a hub id.

    Raises:
        RoadError: where it can't be served; nothing changes then.
    """
    front = _changeable(engine)
    opened = await asyncio.to_thread(_opened, front, label, path)
    answers = await _call(engine, "roadint_load", label, path)
    reason = _refused(opened, answers)
    if reason is not None:
        if _is_anywhere(answers):
            await _call(engine, "roadint_unload", label)
        raise RoadError(reason)
    front.load(label, opened)


async def unload(engine: Any, label: str) -> None:
    """Serve a checkpoint no longer. Requests that run keep it.

    Raises:
        RoadError: where no checkpoint has the label.
    """
    front = _changeable(engine)
    front.unload(label)
    front.forget(())
    _raise(await _call(engine, "roadint_unload", label))


def load_sync(llm: Any, label: str, path: str) -> None:
    """As `load`, of vLLM's offline `LLM`."""
    front = _changeable(llm)
    opened = _opened(front, label, path)
    answers = _call_sync(llm, "roadint_load", label, path)
    reason = _refused(opened, answers)
    if reason is not None:
        if _is_anywhere(answers):
            _call_sync(llm, "roadint_unload", label)
        raise RoadError(reason)
    front.load(label, opened)


def unload_sync(llm: Any, label: str) -> None:
    """As `unload`, of vLLM's offline `LLM`."""
    front = _changeable(llm)
    front.unload(label)
    front.forget(())
    _raise(_call_sync(llm, "roadint_unload", label))


def _registry(engine: Any) -> Registry | None:
    """The checkpoints at the engine's front; None where it was started without roadint."""
    processor = getattr(engine, "llm_engine", engine).input_processor
    registry = getattr(processor, "roadint", None)
    return registry if isinstance(registry, Registry) else None


def _front(engine: Any) -> Registry:
    registry = _registry(engine)
    if registry is None:
        raise RoadError(
            f"the engine was started without roadint: expected additional_config={{{KEY!r}: "
            "{'checkpoints': …}}"
        )
    return registry


def _changeable(engine: Any) -> Registry:
    front = _front(engine)
    config = getattr(engine, "llm_engine", engine).vllm_config
    servers = config.parallel_config._api_process_count
    if servers > 1:
        raise RoadError(
            f"the engine has {servers} API servers, of which one alone would know of the change: "
            "expected --api-server-count 1"
        )
    return front


def _opened(front: Registry, label: str, path: str) -> Served:
    check_served_label(label)
    opened = open_served(path, front.base)
    front.check_load(label, opened)
    return opened


def _refused(opened: Served, answers: Answers) -> str | None:
    """Why an engine did not load a checkpoint; None where all did."""
    for answer in answers:
        if "error" in answer:
            return str(answer["error"])
        if answer["about"]["fingerprint"] != opened.fingerprint:
            return f"{opened.path} changed while it was loaded: load it again"
    return None


def _is_anywhere(answers: Answers) -> bool:
    """Whether an engine has loaded it. Several engines share a front where data is parallel."""
    return any("error" not in answer for answer in answers)


def _raise(answers: Answers) -> None:
    for answer in answers:
        if "error" in answer:
            raise RoadError(answer["error"])


async def _call(engine: Any, method: str, *args: Any) -> Answers:
    answers: Answers = await engine.engine_core.call_utility_all_async(method, *args)
    return answers


def _call_sync(llm: Any, method: str, *args: Any) -> Answers:
    client = llm.llm_engine.engine_core
    if hasattr(client, "call_utility"):
        return [client.call_utility(method, *args)]
    return [getattr(client.engine_core, method)(*args)]
