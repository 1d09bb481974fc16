"""Checkpoints come and go in the front, all cores and all workers of an engine, or in none.

The parts of vLLM between them are stood in for; those of roadint are what runs in an engine.
"""

import asyncio
import pickle
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from roadint import RoadError
from roadint.engines.vllm import control
from roadint.engines.vllm import registry as registry_module
from roadint.engines.vllm.core import asked_of, wrap_block_keys, wrap_engine_core
from roadint.engines.vllm.operations import Armed
from roadint.engines.vllm.registry import Registry
from roadint.engines.vllm.worker import RoadWorker
from tests.engines.vllm.helpers import registry_of, road, serve, steps_of, write


class Worker(RoadWorker):
    """One without a model."""

    def __init__(self, registry: Registry) -> None:
        self.registry, self.steps = registry, steps_of(registry)
        self._armed = Armed(self.steps.hidden_table, self.steps.linear_table)
        self._needed: set[str] = set()


def engine_core() -> type:
    """vLLM's core, as far as roadint wraps it."""

    class Core:
        roadint: Registry

        def __init__(self, workers: list[Worker]) -> None:
            self.workers, self.scheduler = workers, SimpleNamespace(requests={})

        def _initialize_kv_caches(self, vllm_config: Any) -> None: ...

        def preprocess_add_request(self, request: Any) -> Any:
            self.scheduler.requests[request.request_id] = request
            return request

        def collective_rpc(self, method: str, args: tuple[Any, ...]) -> list[Any]:
            return [
                getattr(worker, method.removeprefix("roadint_"))(*args) for worker in self.workers
            ]

    wrap_engine_core(Core)
    return Core


class Engine:
    """A front, and cores with two workers each."""

    def __init__(self, folder: Path, cores: int = 1, api_servers: int = 1) -> None:
        kind, self.paths = engine_core(), [write(folder / "first", road(1, 1))]

        def registry() -> Registry:
            return registry_of(plain=serve(folder / "first", road(1, 1)))

        self.cores: list[Any] = [
            kind([Worker(registry()), Worker(registry())]) for _ in range(cores)
        ]
        for core in self.cores:
            core.roadint = registry()
        self.input_processor = SimpleNamespace(roadint=registry())
        parallel = SimpleNamespace(_api_process_count=api_servers)
        self.vllm_config = SimpleNamespace(parallel_config=parallel)
        self.engine_core = self

    async def call_utility_all_async(self, method: str, *args: Any) -> list[Any]:
        return [getattr(core, method)(*args) for core in self.cores]

    def call_utility(self, method: str, *args: Any) -> Any:
        (core,) = self.cores
        return getattr(core, method)(*args)

    @property
    def front(self) -> Registry:
        return self.input_processor.roadint

    def labels(self) -> list[list[str]]:
        """Those of all parts, which have to be the same."""
        workers = [worker.registry for core in self.cores for worker in core.workers]
        parts = [self.front, *(core.roadint for core in self.cores), *workers]
        return [list(part.served) for part in parts]

    def ask(self, name: str, asked: Any, core: int = 0) -> Any:
        """A request on its way to a core."""
        resolved = self.front.resolve(asked, 5)
        params = SimpleNamespace(extra_args={"roadint": resolved, "other": 1})
        request = SimpleNamespace(
            request_id=name, sampling_params=params, prompt_token_ids=[7] * 5, prompt_embeds=None
        )
        return self.cores[core].preprocess_add_request(request)


def everywhere(labels: list[str], engine: Engine) -> bool:
    found = engine.labels()
    return found == [labels] * len(found)


def change(engine: Engine, offline: bool, what: str, *args: str) -> None:
    if offline:
        llm = SimpleNamespace(llm_engine=engine)
        getattr(control, f"{what}_sync")(llm, *args)
    else:
        asyncio.run(getattr(control, what)(engine, *args))


@pytest.mark.parametrize("offline", [False, True])
def test_coming_and_going(tmp_path: Path, offline: bool) -> None:
    engine = Engine(tmp_path, cores=1 if offline else 2)
    path = write(tmp_path / "second", road(1, 2))
    change(engine, offline, "load", "b", path)
    assert everywhere(["", "b"], engine)
    told = control.served(engine)
    assert told["b"]["path"] == path
    assert told["b"]["names"] == ["a", "b"]
    with pytest.raises(RoadError, match="label 'b' is taken"):
        change(engine, offline, "load", "b", path)
    change(engine, offline, "unload", "b")
    assert everywhere([""], engine)
    with pytest.raises(RoadError, match="no checkpoint 'b' is served"):
        change(engine, offline, "unload", "b")
    change(engine, offline, "load", "b", path)
    assert everywhere(["", "b"], engine)


@pytest.mark.parametrize("offline", [False, True])
def test_what_does_not_fit_is_nowhere(tmp_path: Path, offline: bool) -> None:
    engine = Engine(tmp_path, cores=1 if offline else 2)
    for part, message in (
        (road(0, 2), "layer 0"),
        (road(1, 2, variant="road_2"), "road_1 alone"),
        (road(1, 2, position="first"), "further position"),
    ):
        path = write(tmp_path / message, part)
        with pytest.raises(RoadError, match=message):
            change(engine, offline, "load", "b", path)
        assert everywhere([""], engine)
    with pytest.raises(RoadError, match="no roadint checkpoint"):
        change(engine, offline, "load", "b", str(tmp_path))
    with pytest.raises(RoadError, match="plain word"):
        change(engine, offline, "load", "b b", engine.paths[0])
    assert everywhere([""], engine)


@pytest.mark.parametrize("core", [0, 1])
@pytest.mark.parametrize("worker", [0, 1])
def test_one_of_many_that_refuses(tmp_path: Path, core: int, worker: int) -> None:
    """One worker of one core has another place: nothing is loaded anywhere, and may be later."""
    engine = Engine(tmp_path, cores=2)
    path = write(tmp_path / "second", road(1, 2))
    whole = engine.cores[core].workers[worker]
    engine.cores[core].workers[worker] = Worker(registry_of())
    with pytest.raises(RoadError, match="for which the engine has no place"):
        change(engine, False, "load", "b", path)
    engine.cores[core].workers[worker] = whole
    assert everywhere([""], engine)
    change(engine, False, "load", "b", path)
    assert everywhere(["", "b"], engine)


def test_a_checkpoint_that_changes_on_the_way(tmp_path: Path) -> None:
    """Its values would not be the same in all parts."""
    engine = Engine(tmp_path, cores=2)
    path = write(tmp_path / "second", road(1, 2))
    call = engine.call_utility_all_async

    async def slow(method: str, *args: Any) -> list[Any]:
        if method == "roadint_load":
            write(tmp_path / "second", road(1, 3))
        return await call(method, *args)

    engine.call_utility_all_async = slow
    with pytest.raises(RoadError, match="changed while it was loaded: load it again"):
        change(engine, False, "load", "b", path)
    assert everywhere([""], engine)
    engine.call_utility_all_async = call
    change(engine, False, "load", "b", path)
    assert everywhere(["", "b"], engine)


def test_several_servers_would_not_know_of_each_other(tmp_path: Path) -> None:
    engine = Engine(tmp_path, api_servers=2)
    for what in (("load", "b", engine.paths[0]), ("unload", "")):
        with pytest.raises(RoadError, match="2 API servers.*--api-server-count 1"):
            change(engine, False, *what)
    assert everywhere([""], engine)
    assert list(control.served(engine)) == [""]


def test_an_engine_without_roadint() -> None:
    engine: Any = SimpleNamespace(input_processor=SimpleNamespace())
    with pytest.raises(RoadError, match="started without roadint: expected additional_config"):
        control.served(engine)


def test_what_a_request_needs_stays_until_it_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after loads that fail: a request that is preempted comes to a worker again."""
    monkeypatch.setattr(registry_module, "_GRACE", -1.0)
    engine = Engine(tmp_path)
    core = engine.cores[0]
    change(engine, False, "load", "b", write(tmp_path / "second", road(1, 2)))
    request = engine.ask("r", "a@b")
    resolved = asked_of(request.sampling_params)
    change(engine, False, "unload", "b")
    core.workers.append(Worker(registry_of()))  # it refuses
    with pytest.raises(RoadError):
        change(engine, False, "load", "c", write(tmp_path / "third", road(1, 3)))
    core.workers.pop()
    for worker in core.workers:
        worker.steps.add("r", resolved, 5)
    assert core.roadint.plan(resolved).edits
    del core.scheduler.requests["r"]
    change(engine, False, "unload", "")
    for registry in (core.roadint, *(worker.registry for worker in core.workers)):
        with pytest.raises(RoadError, match="was unloaded"):
            registry.plan(resolved)


def test_a_request_whose_checkpoint_is_gone_is_refused_by_the_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_module, "_GRACE", -1.0)
    engine = Engine(tmp_path)
    resolved = engine.front.resolve("a", 5)
    change(engine, False, "unload", "")
    monkeypatch.setattr(engine.front, "resolve", lambda *_: resolved)
    with pytest.raises(RoadError, match="was unloaded: load it and ask again"):
        engine.ask("r", "a")
    assert not engine.cores[0].scheduler.requests


@pytest.mark.parametrize("asked", ["a", {"a": 1.0}, ["a"], {"compose": "a"}])
def test_what_did_not_pass_the_front_is_refused_by_the_core(tmp_path: Path, asked: Any) -> None:
    """A client of the core alone, whose composition nobody has read."""
    engine = Engine(tmp_path)
    engine.front.resolve = lambda *_: asked
    with pytest.raises(RoadError, match="did not pass the engine's front"):
        engine.ask("r", asked)


# Keys of blocks.


def utils() -> Any:
    """vLLM's module, and one that has taken its function already."""
    module: Any = ModuleType("utils")
    module.generate_block_hash_extra_keys = lambda request, start, end, mm: (request.keys, mm + 1)
    return module


def test_keys_of_blocks_come_after_those_of_vllm(tmp_path: Path) -> None:
    engine, module, other = Engine(tmp_path), utils(), utils()
    import sys

    other.generate_block_hash_extra_keys = module.generate_block_hash_extra_keys
    sys.modules |= {"roadint_utils": module, "roadint_other": other}
    try:
        wrap_block_keys(module)
    finally:
        del sys.modules["roadint_utils"], sys.modules["roadint_other"]
    assert other.generate_block_hash_extra_keys is module.generate_block_hash_extra_keys
    edited, base = engine.ask("r", "a"), engine.ask("s", None)
    edited.keys = base.keys = (("lora", "x"),)
    own = edited.sampling_params.extra_args["roadint"].edits.key_of_block(4, 8)
    assert own is not None
    keys = module.generate_block_hash_extra_keys
    assert keys(edited, 0, 4, 0) == keys(base, 0, 4, 0) == ((("lora", "x"),), 1)
    assert keys(edited, 4, 8, 0) == ((("lora", "x"), *own), 1)
    edited.keys = None
    assert keys(edited, 4, 8, 2) == (own, 3)
    assert keys(edited, 0, 4, 2) == (None, 3)


def test_what_travels_to_workers_is_plain(tmp_path: Path) -> None:
    request = Engine(tmp_path).ask("r", "a")
    kept = request.sampling_params.extra_args
    assert kept["other"] == 1
    travelled = pickle.loads(pickle.dumps(kept["roadint"]))
    assert type(travelled) is dict
    assert travelled == kept["roadint"]
