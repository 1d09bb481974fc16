"""Thousands of requests that come, go, are aborted and preempted, while checkpoints come and go.

ROADINT_REQUESTS=10000 asks as many.
"""

import os
import random
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import roadint
from roadint import RoadIntervention, RoadModel
from tests.vllm.checkpoints import save
from tests.vllm.engine import Answered, Asked, Engine, Runner
from tests.vllm.inside import generate, scheduler
from tests.vllm.oracle import TOLERANCE, check

REQUESTS = int(os.environ.get("ROADINT_REQUESTS", "2000"))
PART = 1000  # of them, after which no request is left
MOST_GROWTH = 40  # MB from the end of the first part to that of the last
NEW = 8  # tokens of the longest answer
COMPOSITIONS = [
    None,
    "german@a",
    "english@a",
    "german@a + english@a",
    "0.5*german@a - english@a",
    "spoken@a",
    "0.3*spoken@a + german@a",
    "german@b",
    "german@a + german@b",
    "lin@ad",
    "0.5*lin@ad",
    "half@ad",
    "lin@ad + german@a",
    "german@c",
    "german@c - 0.5*german@b",
    "lin@c",
    "lin@c + spoken@a",
]


def test_none_gets_another_ones_edit(tmp_path: Path) -> None:
    base, made = _model_and_checkpoints(tmp_path)
    engine = _engine("v1", base, made)
    try:
        model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
        road = _road_with(model, made)
        draw = random.Random(0)
        lengths = [draw.randint(2, 80) for _ in range(24)]
        prompts = [tuple(draw.randrange(512) for _ in range(length)) for length in lengths]
        prompts += [(*prompt[:40], 7, 8) for prompt in prompts if len(prompt) > 40]
        asked = [Asked(prompt, text, NEW) for prompt in prompts for text in COMPOSITIONS]
        answers = engine.run(generate, asked)
        check(road, asked, answers)
        known = list(zip(asked, answers, strict=True))
        parts = [
            engine.run(_storm, known, made["c"], PART, seed) for seed in range(REQUESTS // PART)
        ]
    finally:
        engine.close()
    assert [wrong for part in parts for wrong in part["wrong"]] == []
    for part in parts:
        assert part["answered"] + part["aborted"] == PART
        assert part["left"] == 0
    for event, least in {"refused": 1, "reloads": 1, "preempted": 1, "aborted": 10}.items():
        assert sum(part[event] for part in parts) >= least * len(parts), (event, parts)
    growth = parts[-1]["resident_mb"] - parts[0]["resident_mb"]
    assert growth < MOST_GROWTH, [part["resident_mb"] for part in parts]


def _engine(runner: Runner, base: str, made: dict[str, str]) -> Engine:
    return Engine(
        runner,
        base,
        made,
        skip_tokenizer_init=True,
        max_model_len=96,
        max_num_seqs=16,
        max_num_batched_tokens=48,
        kv_cache_memory_bytes=500_000,
    )


def _model_and_checkpoints(folder: Path) -> tuple[str, dict[str, str]]:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=512,
            hidden_size=128,
            intermediate_size=192,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.15,
        )
    ).eval()
    model.save_pretrained(folder / "model")
    halves: Any = {"german": "[0, d/2)", "english": "[d/2, d)"}

    def edits() -> list[RoadIntervention]:
        return [
            RoadIntervention(layer=0, position="last(3)", subspaces=halves),
            RoadIntervention(layer=1, phase="generated", subspaces={"spoken": "[0, d)"}),
        ]

    def adapter(**arguments: Any) -> list[Any]:
        road = roadint.add_linear_road(model, name="lin", **arguments)
        road.add_adapter("half", pairing="half", variant="road_4")
        return list(road.adapters.values())

    return str(folder / "model"), {
        "a": save(model, folder / "a", edits(), seed=1),
        "b": save(model, folder / "b", edits()[:1], seed=2),
        "ad": save(model, folder / "ad", [], adapter(), seed=3),
        "c": save(model, folder / "c", edits()[:1], adapter()[:1], seed=4),
    }


def _road_with(model: Any, made: dict[str, str]) -> RoadModel:
    road = RoadModel(model)
    for label, path in made.items():
        road.add_checkpoint(path, label)
    return road


def _storm(
    llm: Any, known: list[tuple[Asked, Answered]], third: str, count: int, seed: int
) -> dict[str, Any]:
    """Ask `count` requests; says what became of them."""
    import psutil
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    from roadint.engines.vllm import control

    draw, engine = random.Random(seed), llm.llm_engine
    told: dict[str, Any] = dict.fromkeys(
        ("answered", "aborted", "refused", "reloads", "preempted", "left"), 0
    )
    told["wrong"] = []
    running: dict[str, tuple[int, int]] = {}
    loaded, sent = True, 0

    def send() -> None:
        nonlocal sent
        number, new = draw.randrange(len(known)), draw.randint(1, NEW)
        asked = known[number][0]
        params = SamplingParams(
            temperature=0,
            max_tokens=new,
            ignore_eos=True,
            logprobs=0,
            extra_args=None if asked.compose is None else {"roadint": asked.compose},
        )
        try:
            engine.add_request(f"s{seed}-{sent}", {"prompt_token_ids": list(asked.prompt)}, params)
        except VLLMValidationError as error:
            told["refused"] += 1
            if loaded or "@c" not in str(asked.compose):
                told["wrong"].append(f"{asked.compose!r} was refused: {error}")
            return
        if not loaded and "@c" in str(asked.compose):
            told["wrong"].append(f"{asked.compose!r} was not refused")
        running[f"s{seed}-{sent}"] = number, new
        sent += 1

    while sent < count or running:
        while sent < count and len(running) < 40 and draw.random() < 0.9:
            send()
        for output in engine.step():
            if output.finished and output.request_id in running:
                number, new = running.pop(output.request_id)
                _compare(known[number], output.outputs[0], new, told["wrong"])
                told["answered"] += 1
        if draw.random() < 0.05 and running:
            gone = draw.choice(list(running))
            engine.abort_request([gone])
            del running[gone]
            told["aborted"] += 1
        if draw.random() < 0.03:
            if loaded:
                control.unload_sync(llm, "c")
            else:
                control.load_sync(llm, "c", third)
                told["reloads"] += 1
            loaded = not loaded
        requests = scheduler(llm).requests.values()
        told["preempted"] += any(request.num_preemptions for request in requests)
    worker = engine.engine_core.engine_core.model_executor.driver_worker.worker
    engine.step()
    told["left"] = len(worker.model_runner.get_model().roadint_worker.steps) if not running else -1
    if not loaded:
        control.load_sync(llm, "c", third)
    told["blocks"] = scheduler(llm).kv_cache_config.num_blocks
    told["resident_mb"] = psutil.Process().memory_info().rss / 1e6
    return told


def _compare(known: tuple[Asked, Answered], output: Any, new: int, wrong: list[str]) -> None:
    asked, answered = known
    tokens = tuple(output.token_ids)
    found = [step[token].logprob for step, token in zip(output.logprobs, tokens, strict=True)]
    pairs = zip(found, answered.logprobs[:new], strict=True)
    if tokens != answered.tokens[:new] or max(abs(a - b) for a, b in pairs) > TOLERANCE:
        wrong.append(f"{asked.compose!r} on {len(asked.prompt)} tokens: {tokens}")
