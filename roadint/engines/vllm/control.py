"""Checkpoints that come and go while an engine serves (needs vLLM)."""

from typing import Any

from roadint.engines.vllm.registry import Registry
from roadint.engines.vllm.served import open_served
from roadint.engines.vllm.settings import KEY, check_served_label
from roadint.errors import RoadError


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


async def load(engine: Any, label: str, path: str) -> None:
    """Serve a further checkpoint.

    Args:
        engine: vLLM's `AsyncLLM`.
        label: Its label; "" for none.
        path: A folder or a hub id.

    Raises:
        RoadError: where it can't be served; nothing changes then.
    """
    front = _checked(engine, label, path)
    _finish_load(front, label, path, await _call(engine, "roadint_load", label, path))


async def unload(engine: Any, label: str) -> None:
    """Serve a checkpoint no longer. Requests that run keep it.

    Raises:
        RoadError: where no checkpoint has the label.
    """
    _front(engine).unload(label)
    _front(engine).forget(())
    _raise(await _call(engine, "roadint_unload", label))


def load_sync(llm: Any, label: str, path: str) -> None:
    """As `load`, of vLLM's offline `LLM`."""
    front = _checked(llm, label, path)
    _finish_load(front, label, path, _call_sync(llm, "roadint_load", label, path))


def unload_sync(llm: Any, label: str) -> None:
    """As `unload`, of vLLM's offline `LLM`."""
    _front(llm).unload(label)
    _front(llm).forget(())
    _raise(_call_sync(llm, "roadint_unload", label))


def _front(engine: Any) -> Registry:
    engine = getattr(engine, "llm_engine", engine)
    registry = getattr(engine.input_processor, "roadint", None)
    if not isinstance(registry, Registry):
        raise RoadError(
            f"the engine was started without roadint: expected additional_config={{{KEY!r}: "
            "{'checkpoints': …}}"
        )
    return registry


def _checked(engine: Any, label: str, path: str) -> Registry:
    front = _front(engine)
    front.check_load(check_served_label(label), open_served(path, front.base))
    return front


def _finish_load(front: Registry, label: str, path: str, answer: dict[str, Any]) -> None:
    _raise(answer)
    opened = open_served(path, front.base)
    if opened.fingerprint != answer["about"]["fingerprint"]:
        raise RoadError(f"{path} changed while it was loaded: unload {label!r}, load it again")
    front.load(label, opened)


def _raise(answer: dict[str, Any]) -> None:
    if "error" in answer:
        raise RoadError(answer["error"])


async def _call(engine: Any, method: str, *args: Any) -> Any:
    answers = await engine.engine_core.call_utility_all_async(method, *args)
    return next((answer for answer in answers if "error" in answer), answers[0])


def _call_sync(llm: Any, method: str, *args: Any) -> Any:
    client = llm.llm_engine.engine_core
    if hasattr(client, "call_utility"):
        return client.call_utility(method, *args)
    return getattr(client.engine_core, method)(*args)
