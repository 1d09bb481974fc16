"""`roadint bench serve` on real engines: that what it times acts, and that its report holds what was served."""

import pytest

from roadint.bench.serve import bench_serve
from roadint.bench.serve_inputs import ServeJob
from roadint.bench.serve_report import THREAD_TIME

REQUESTS, TOKENS, BLOCK = 4, 64, 32


def test_hidden_states_and_loras_are_served_side_by_side() -> None:
    job = ServeJob("smollm2-135m", requests=REQUESTS, prompt_tokens=TOKENS, new_tokens=3)
    report = bench_serve(
        job, systems=("hidden", "lora"), counts=(0, 1, 4), caches=(True,), runs=1, quiet=True
    )
    cases = {(case["name"], case["system"], case["compositions"]): case for case in report["cases"]}
    on, hidden, lora = "prefix cache on", "roadint, hidden states", "vLLM LoRA r=8"
    ours = [f"{hidden}, 1 subspace", f"{hidden}, 3 subspaces"]
    served = {(on, hidden, 0), *((on, lora, count) for count in (0, 1, 4))}
    served |= {(on, system, count) for system in ours for count in (1, 4)}
    fresh = {(on, f"{ours[1]}, new in every run", 4)}
    measured = {(THREAD_TIME, hidden, 0)}
    measured |= {(THREAD_TIME, system, count) for system in ours for count in (1, 4)}
    measured |= {(THREAD_TIME, system, count) for _, system, count in fresh}
    assert set(cases) == served | fresh | measured
    # The first half of the prompts is a block that all share, whatever acts after it; LoRAs share
    # none, each with its own.
    shared = (REQUESTS - 1) * BLOCK / (REQUESTS * TOKENS)
    for key in served | fresh:
        own = 0 if key == (on, lora, 4) else shared
        assert cases[key]["cached_share"] == pytest.approx(own), key
        assert cases[key]["tokens_per_s"] > 0
        assert cases[key]["preemptions"] == 0
    for key in measured:
        assert cases[key]["steps"] == 3
        assert cases[key]["share"] > 0
    assert report["machine"]["vllm"].startswith("0.32")
