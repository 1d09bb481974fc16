"""`roadint bench serve` without vLLM: what it serves, what it asks of engines, and what its report says of their times."""

import json
import pydoc
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM

from roadint import RoadError, RoadModel
from roadint.bench.serve import batches_of, bench_serve, specs_of
from roadint.bench.serve_engine import Batch, EngineSpec, arguments_of, environment_of
from roadint.bench.serve_inputs import (
    LABELS,
    Inputs,
    ServeJob,
    compositions,
    make_inputs,
    random_prompts,
    token_numbers,
)
from roadint.bench.serve_meter import INSIDE, Meter, measure_roadint
from roadint.bench.serve_report import (
    served_case,
    served_ratios,
    system_of,
    thread_case,
    verdicts,
)
from roadint.grammar.composition import Composition
from tests.helpers import SIZES, call

JOB = ServeJob("tiny", requests=4, prompt_tokens=6, new_tokens=2)


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    LlamaConfig(**SIZES, num_key_value_heads=2).save_pretrained(tmp_path / "tiny")
    return str(tmp_path / "tiny")


@pytest.mark.parametrize("count", [1, 8, 256])
@pytest.mark.parametrize("subspaces", [1, 3])
def test_as_many_different_compositions_as_asked_for(count: int, subspaces: int) -> None:
    names = [f"{name}@{LABELS[subspaces]}" for name in "abc"[:subspaces]]
    texts = compositions(count, 256, subspaces)
    assert len(texts) == 256
    parsed = [Composition.parse(text, names).terms for text in texts]
    assert len(set(parsed)) == count
    assert all(len(terms) == subspaces for terms in parsed)
    for shift in range(1, 4):  # new ones every time
        later = compositions(count, 256, subspaces, first=shift * count)
        assert not set(texts) & set(later)
    strengths = [strength for terms in parsed for _, strength in terms]
    assert min(strengths) > 0.4
    assert max(strengths) < 1.6
    assert compositions(0, 3, subspaces) == [None] * 3


def test_prompts_have_a_beginning_in_common() -> None:
    prompts = random_prompts(ServeJob("", requests=8, prompt_tokens=10), 1000)
    assert len({tuple(ids[:5]) for ids in prompts}) == 1
    assert len({tuple(ids[5:]) for ids in prompts}) == 8
    assert all(10 <= token < 1000 for ids in prompts for token in ids)


def test_checkpoints_and_loras_load_and_act(tiny: str, tmp_path: Path) -> None:
    """Every checkpoint, through RoadModel; every LoRA, through PEFT: no two of them compute the same."""
    inputs = make_inputs(ServeJob(tiny, requests=4, prompt_tokens=6, layer=1), tmp_path / "made")
    torch.manual_seed(0)
    ids = torch.tensor(inputs.prompts[0])[None]
    base = LlamaForCausalLM(LlamaConfig.from_pretrained(tiny)).eval()
    with torch.no_grad():
        logits = [base(ids).logits]
        for folders in (inputs.hidden, inputs.adapters):
            for subspaces, label in LABELS.items():
                road = RoadModel(base)
                road.add_checkpoint(folders[label], label)
                for text in compositions(2, 2, subspaces):
                    logits.append(road(ids, compose=text).logits)
        for folder in inputs.loras[:2]:
            again = LlamaForCausalLM(LlamaConfig.from_pretrained(tiny)).eval()
            again.load_state_dict(base.state_dict())
            logits.append(PeftModel.from_pretrained(again, folder)(ids).logits)
    last = torch.stack([values[0, -1] for values in logits])
    apart = torch.cdist(last, last) + torch.eye(len(last))
    assert float(apart.min()) > 1e-4
    heads, size = 2, SIZES["hidden_size"] // SIZES["num_attention_heads"]
    assert inputs.token_bytes == 2 * SIZES["num_hidden_layers"] * heads * size * 4
    assert token_numbers(base.config) * 4 == inputs.token_bytes


def spec(kind: str, cached: bool = False, **more: Any) -> EngineSpec:
    subspaces = (1, 3) if kind in ("hidden", "adapters") else (0,)
    return EngineSpec(kind, cached, (0, 1, 4), subspaces, 4, "log", **more)


def test_engines_get_what_they_are_compared_by() -> None:
    inputs = Inputs("folder", [[1]], {"one": "h"}, {"one": "a"}, ["lora"], 100)
    arguments = {
        kind: arguments_of(spec(kind), JOB, inputs, on_gpu=True)
        for kind in ("bare", "hidden", "adapters", "lora")
    }
    shared = {"model", "dtype", "max_num_seqs", "max_model_len", "enable_prefix_caching"}
    for given in arguments.values():
        assert {key: given[key] for key in shared} == {
            key: arguments["bare"][key] for key in shared
        }
    assert "additional_config" not in {**arguments["bare"], **arguments["lora"]}
    served = {"roadint": {"checkpoints": {"one": "h"}}}
    assert arguments["hidden"]["additional_config"] == served
    assert arguments["lora"]["max_loras"] == 4
    # On a CPU all requests fit into the cache at once.
    given = arguments_of(spec("bare"), JOB, inputs, on_gpu=False)
    assert given["kv_cache_memory_bytes"] >= JOB.requests * 8 * 100
    changed = ServeJob("tiny", engine=(("max_model_len", 99),))
    assert arguments_of(spec("bare"), changed, inputs, on_gpu=True)["max_model_len"] == 99


def test_the_bare_engine_and_loras_run_without_the_plugin() -> None:
    for kind in ("bare", "lora"):
        assert "roadint" not in environment_of(spec(kind), on_gpu=True)["VLLM_PLUGINS"].split(",")
    for kind in ("hidden", "adapters"):
        assert "VLLM_PLUGINS" not in environment_of(spec(kind), on_gpu=True)
    one = "VLLM_ENABLE_V1_MULTIPROCESSING"
    assert one not in environment_of(spec("hidden"), on_gpu=True)
    assert environment_of(spec("hidden", inside=True), on_gpu=True)[one] == "0"


def test_every_system_runs_with_every_count_that_it_can(tmp_path: Path) -> None:
    specs = specs_of(("bare", "hidden", "lora"), (0, 1, 8, 64), True, 32, tmp_path)
    assert [(one.kind, one.counts, one.slots) for one in specs] == [
        ("bare", (0,), 1),
        ("hidden", (0, 1, 8, 64), 64),
        ("lora", (0, 1, 8), 8),
    ]
    more = specs_of(("lora",), (0, 1, 8, 64), True, None, tmp_path)
    assert [(one.counts, one.slots) for one in more] == [((0, 1, 8), 8), ((64,), 64)]
    assert batches_of(spec("hidden")) == [
        Batch(0, 0),
        *(Batch(count, number) for count in (1, 4) for number in (1, 3)),
        Batch(4, 3, fresh=True),
    ]
    assert batches_of(spec("lora")) == [Batch(0, 0), Batch(1, 0), Batch(4, 0)]
    assert len({one.log for one in [*specs, *more]}) >= len(specs)


def test_nested_calls_count_once() -> None:
    """A clock that says how many nanoseconds have gone: 10 a reading, and what functions take."""
    time = [0]

    def clock() -> int:
        time[0] += 10
        return time[0]

    meter = Meter(clock)

    def spend(nanoseconds: int) -> None:
        time[0] += nanoseconds

    inner = meter.wrapped("worker", lambda: spend(1000))

    def both() -> None:
        spend(500)
        inner()
        inner()

    forward = meter.wrapped("forward", meter.wrapped("worker", both))
    forward()
    inner()
    taken = meter.take()
    assert taken["worker"] == (pytest.approx((500 + 2000 + 10 + 1000 + 10) / 1e9), 2)
    assert taken["forward"][0] == pytest.approx(2530 / 1e9)
    assert set(meter.take().values()) == {(0.0, 0)}

    def fail() -> None:
        spend(70)
        raise ValueError

    failing = meter.wrapped("worker", fail)
    for _ in range(2):
        with pytest.raises(ValueError):  # noqa: PT011
            failing()
    assert meter.take()["worker"] == (pytest.approx(160 / 1e9), 2)


def test_a_meter_replaces_functions_where_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    from roadint.engines.vllm.rows import slots

    monkeypatch.setattr(slots.Slots, "take", slots.Slots.take)  # put back at the end
    meter = Meter()
    meter.wrap("worker", "roadint.engines.vllm.rows.slots:Slots.take")
    assert slots.Slots(2).take(["a"]) == ({"a": 0}, ["a"])
    assert meter.calls["worker"] == 1


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[Meter]:
    """All that roadint runs in an engine, until the end of a test: a function that was renamed can't be wrapped."""
    from roadint.engines.vllm import operations

    for places in INSIDE.values():
        for place in places:
            monkeypatch.setattr(place.replace(":", "."), pydoc.locate(place.replace(":", ".")))
    monkeypatch.setattr(operations._running, "armed", None)  # other tests leave a model there
    meter = Meter()
    own = {name: getattr(operations, f"_{name}") for name in ("edit", "turn_output")}
    measure_roadint(meter)
    yield meter
    for name, function in own.items():
        operations._library.impl(name, function, "CPU", allow_override=True)


def test_operations_are_measured_wherever_they_are_called_from(measured: Meter) -> None:
    """Outside of an engine's step they refuse, and that takes time, too."""
    from roadint.engines.vllm import operations

    assert set(measured.calls) == {"worker", "core", "front"}
    hidden = torch.zeros(2, 4)
    calls = (
        lambda: operations.edit(hidden, None, 0),
        lambda: operations.turn_output(hidden, 0),
        lambda: torch.ops.roadint.edit(hidden, None, 0),
        lambda: torch.ops.roadint.turn_output(hidden, 0),
    )
    for number, act in enumerate(calls, 1):
        with pytest.raises(RuntimeError, match="outside of an engine's step"):
            act()
        assert measured.calls["worker"] == number


def runs(*seconds: float, cached: float = 0.0) -> list[dict[str, Any]]:
    return [
        {"seconds": s, "ttft": s / 4, "ttft_most": s / 2, "tpot": s / 8, "cached": cached, "preemptions": 1}
        for s in seconds
    ]  # fmt: skip


def report() -> dict[str, Any]:
    """The machine is twice as slow in the last two turns: what is compared are turns."""
    adapters, lora = system_of("adapters", 1), system_of("lora", 0)
    off, on = "prefix cache off", "prefix cache on"
    cases = [
        served_case(off, "bare engine", 0, runs(1.0, 2.0, 2.0), 10.0, JOB),
        served_case(off, adapters, 1, runs(1.1, 2.2, 2.2), 10.0, JOB),
        served_case(off, adapters, 8, runs(1.21, 2.42, 2.42), 10.0, JOB),
        served_case(off, f"{adapters}, new in every run", 8, runs(1.5, 3.0, 3.0), 10.0, JOB),
        served_case(off, lora, 8, runs(2.662, 5.324, 5.324), 10.0, JOB),
        served_case(on, adapters, 8, runs(0.6, 1.2, 1.2, cached=0.5), 10.0, JOB),
        {"name": on, "system": lora, "error": "no room\nat all"},
    ]
    for count, share in ((1, 0.08), (8, 0.1)):
        measured = [
            {
                "worker": (forward * share / (1 + share), 30),
                "forward": (forward, 10),
                "front": (4e-5, 4),
                "core": (8e-5, 4),
            }
            for forward in (1.0, 2.0)
        ]
        cases.append(thread_case(adapters, count, measured, JOB.requests))
    made: dict[str, Any] = {"machine": {}, "job": {"requests": 4}, "cases": cases}
    made["ratios"] = served_ratios(cases)
    return {**made, "bars": verdicts(made, (0, 1, 8))}


def test_the_report_has_what_tools_read_and_compares_turns() -> None:
    made = report()
    assert json.loads(json.dumps(made)) == made
    first = made["cases"][0]
    assert (first["median_s"], first["min_s"], first["max_s"], first["runs"]) == (2.0, 1.0, 2.0, 3)
    assert first["tokens_per_s"] == JOB.requests * JOB.new_tokens / 2.0
    assert (first["ttft_s"], first["tpot_s"], first["preemptions"]) == (0.5, 0.25, 3)
    ratios = {
        (entry["name"], entry["system"], entry["compositions"], entry["over"]): entry["value"]
        for entry in made["ratios"]
    }
    ours = system_of("adapters", 1)
    off = "prefix cache off"
    assert ratios == {
        (off, ours, 1, "bare engine"): 0.909,
        (off, ours, 8, "bare engine"): 0.826,
        (off, ours, 8, "vLLM LoRA r=8"): 2.2,
        (off, ours, 8, "1 composition"): 0.909,
        (off, f"{ours}, new in every run", 8, "bare engine"): 0.667,
        (off, f"{ours}, new in every run", 8, "vLLM LoRA r=8"): 1.775,
    }
    thread = made["cases"][-1]
    assert thread["share"] == pytest.approx(0.1)
    assert (thread["front_us"], thread["core_us"], thread["steps"]) == (10.0, 20.0, 10)


def test_promises_stand_beside_what_was_measured() -> None:
    bars = {bar["name"]: (bar["value"], bar["reached"]) for bar in report()["bars"]}
    told = {name: bar for name, bar in bars.items() if bar[0] is not None}
    assert told == {
        "adapters, 1 subspace: thread time inside roadint, of the rest of a forward pass": (0.1, True),
        "adapters, 1 subspace: thread time with 8 compositions over that with 1": (1.0185, True),
        "adapters, 1 subspace: time with 8 compositions over that with 1": (1.1, False),
        "8 adapters: tokens a second over vLLM's LoRA r=8": (2.2, True),
    }  # fmt: skip
    assert len(bars) == 13


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is here")
def test_without_vllm_nothing_is_reported(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, errors = call(capsys, monkeypatch, "bench", "serve")
    assert (code, "vLLM is not installed here" in errors) == (2, True)
    job = ServeJob(tiny, requests=2, prompt_tokens=4, new_tokens=1)
    with pytest.raises(RoadError, match=r"no engine ran: bare engine: .*bare engine"):
        bench_serve(job, systems=("bare",), parts=("throughput",), caches=(False,), quiet=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--system", "lore"], "unknown system 'lore'"),
        (["--part", "thread"], "unknown part 'thread'"),
        (["--cache", "of"], "unknown cache 'of'"),
        (["--phase", "generated"], "unknown phase 'generated'"),
        (["--dtype", "float"], "unknown dtype 'float'"),
        (["--engine", "block_size"], "--engine 'block_size': expected NAME=VALUE"),
        (["--plot", "serve.txt"], "expected a .png, .svg or .pdf file"),
    ],
)
def test_bad_input_is_told_before_any_engine_starts(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code, _, errors = call(capsys, monkeypatch, "bench", "serve", *arguments)
    assert (code, message in errors) == (2, True), errors


def test_a_layer_that_the_model_lacks_is_refused(tiny: str, tmp_path: Path) -> None:
    with pytest.raises(RoadError, match="layer"):
        make_inputs(ServeJob(tiny, requests=2, prompt_tokens=4, layer=9), tmp_path / "made")
    with pytest.raises(RoadError, match="can't be read"):
        make_inputs(ServeJob(str(tmp_path), requests=2, prompt_tokens=4), tmp_path / "made")


def test_sizes_of_a_cache_without_grouped_heads() -> None:
    config = SimpleNamespace(num_attention_heads=4, hidden_size=32, num_hidden_layers=3)
    assert token_numbers(config) == 2 * 3 * 32
