"""Prefix reuse: the same losses, gradients and parameters as training the plain way, from a fraction of the work."""

import json
import logging
import os
import pickle
import random
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
)

import roadint
from roadint import RoadIntervention, RoadModel
from roadint.data.collate import Collator, Example, completion_nll
from roadint.recipes.recipe import Recipe
from roadint.training.prefix.ahead import OnHost
from roadint.training.prefix.attention import PlainAttention
from roadint.training.prefix.cache import PrefixCache
from roadint.training.prefix.cut_model import CutModel
from roadint.training.prefix.plan import TokenPlan, first_needed
from roadint.training.prefix.sharing import SharedPrefix, reusable_prefix
from roadint.training.prefix.storage import PrefixStorage
from roadint.training.sampler import MixedLengthSampler
from tests.helpers import LAYERS, build, trained

HALVES = {"a": "[0, d/2)", "b": "[d/2, d)"}
SITES: dict[str, list[dict[str, Any]]] = {
    "last prompt token": [{"layer": 1}],
    "top layer": [{"layer": LAYERS - 1}],
    "inside the lowest layer": [{"layer": 0, "component": "mlp_output"}],
    "two layers, several tokens": [
        {"layer": 2},
        {"layer": 0, "position": "last(3)", "variant": "road_4"},
    ],
    "all tokens": [{"layer": 1, "position": "all"}],
    "a token of the template": [{"layer": 0, "position": "at(2)"}],
    "also what follows the prompt": [
        {"layer": 1, "position": "all", "phase": "both", "basis": "random"}
    ],
    "an adapter beside it": [
        {"layer": 2},
        {"name": "c", "targets": r".*(q_proj|query_key_value|c_attn)", "layers": [1, 2]},
    ],
    "only what follows the prompt": [{"layer": 1, "position": "all", "phase": "generated"}],
}


def examples(count: int = 13, compositions: tuple[str, ...] = ("a", "b", "a + b")) -> list[Example]:
    """Prompts with a common beginning, of 7 to 23 tokens, past the sliding window of the tiny Gemma."""
    draw = random.Random(0)

    def tokens(low: int, high: int) -> list[int]:
        return [draw.randrange(3, 128) for _ in range(draw.randrange(low, high))]

    return [
        Example([1, 9, 8, 7, *tokens(3, 20)], tokens(1, 9), draw.choice(compositions))
        for _ in range(count)
    ]


def road_on(model: PreTrainedModel, sites: list[dict[str, Any]]) -> RoadModel:
    adapters = [site for site in sites if "targets" in site]
    here = (RoadIntervention(**site, subspaces=HALVES) for site in sites if "targets" not in site)
    road = trained(model.requires_grad_(False), *here)
    for each in adapters:
        adapter = road.add_adapter(**each)
        with torch.no_grad():
            adapter.theta.normal_(0, 0.3, generator=torch.Generator().manual_seed(2))
    return road


@pytest.fixture
def collator(tokenizer: Any) -> Collator:
    return Collator(tokenizer)


def loss_and_gradients(road: RoadModel, nll: Tensor) -> tuple[Tensor, Tensor]:
    road.zero_grad()
    loss = nll.mean()
    loss.backward()
    return loss.detach(), torch.cat(
        [
            (each.grad if each.grad is not None else torch.zeros_like(each)).flatten()
            for each in road.trained_parameters()
        ]
    )


def assert_same(
    road: RoadModel, cache: PrefixCache, collator: Collator, batch: list[Example]
) -> None:
    plain_loss, plain = loss_and_gradients(road, completion_nll(road, collator(batch))[0])
    loss, gradients = loss_and_gradients(road, cache.nll(road, cache(batch))[0])
    assert float((loss - plain_loss).abs() / plain_loss) < 1e-6
    assert float((gradients - plain).norm() / plain.norm()) < 1e-5


@pytest.mark.parametrize("sites", SITES.values(), ids=SITES)
def test_losses_and_gradients_are_the_same(
    model: PreTrainedModel, sites: list[dict[str, Any]], collator: Collator, tmp_path: Path
) -> None:
    road = road_on(model, sites)
    listed = examples(compositions=("a", "b + c", "c") if road.adapters else ("a", "b", "a + b"))
    cache = PrefixCache.build(road, listed, collator, folder=tmp_path)
    assert_same(road, cache, collator, listed)
    assert_same(road, cache, collator, [max(listed, key=lambda example: len(example.completion))])
    rows = cache.nll(road, cache(listed))[1]
    assert torch.equal(rows, completion_nll(road, collator(listed))[1])


def test_layers_that_return_tuples_and_count_by_the_mask(
    collator: Collator, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = BloomForCausalLM(
        BloomConfig(vocab_size=128, hidden_size=32, n_layer=3, n_head=4)
    ).eval()
    road = road_on(model, [{"layer": 1}])
    assert_same(
        road, PrefixCache.build(road, examples(), collator, folder=tmp_path), collator, examples()
    )


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_twenty_steps_end_at_the_same_parameters(
    model: PreTrainedModel, optimizer: str, collator: Collator, tmp_path: Path
) -> None:
    listed, results = examples(24), []
    for reuse in (False, True):
        road = road_on(model, [{"layer": 1}])
        cache = PrefixCache.build(road, listed, collator, folder=tmp_path) if reuse else None
        made = getattr(torch.optim, optimizer)(
            road.interventions.parameters(), lr=1e-2, weight_decay=0.0
        )
        losses = []
        for step in range(20):
            batch = [listed[(4 * step + row) % 24] for row in range(4)]
            loss = (
                cache.nll(road, cache(batch)) if cache else completion_nll(road, collator(batch))
            )[0].mean()
            made.zero_grad()
            loss.backward()
            made.step()
            losses.append(loss.detach())
        results.append(
            (
                torch.stack(losses),
                torch.cat([each.detach().flatten() for each in road.interventions.parameters()]),
            )
        )
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-4)
    if (
        optimizer == "SGD"
    ):  # Adam divides by gradients, and so may blow rounding up where one is nearly zero
        torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-5, atol=1e-5)


def test_bfloat16_stays_within_its_rounding(collator: Collator, tmp_path: Path) -> None:
    road = road_on(build("gemma3").bfloat16(), [{"layer": 1}])
    cache = PrefixCache.build(road, examples(), collator, folder=tmp_path)
    plain = completion_nll(road, collator(examples()))[0]
    assert float((cache.nll(road, cache(examples()))[0] - plain).detach().abs().mean()) < 0.05


def test_a_step_runs_the_layers_above_over_the_completion_alone(
    collator: Collator, tmp_path: Path
) -> None:
    model = build("llama")
    road, listed = road_on(model, [{"layer": 1}]), examples(4)
    cache = PrefixCache.build(road, listed, collator, folder=tmp_path)
    seen: dict[str, list[tuple[int, ...]]] = {}
    for name, module in [
        *((f"layer {i}", each.mlp) for i, each in enumerate(model.model.layers)),
        ("head", model.lm_head),
    ]:
        module.register_forward_hook(
            lambda _, args, __, name=name: seen.setdefault(name, []).append(
                tuple(args[0].shape[:2])
            )
        )
    cache.nll(road, cache(listed))
    longest = max(len(example.completion) for example in listed)
    assert seen == {
        "layer 2": [(4, longest)],
        "head": [(1, sum(len(example.completion) for example in listed))],
    }


def test_what_is_kept_follows_the_budget(collator: Collator, tmp_path: Path) -> None:
    road, listed = road_on(build("llama"), [{"layer": 0}]), examples()
    reports = {}
    for budget in (None, 30_000, 0):
        cache = PrefixCache.build(road, listed, collator, memory=budget, folder=tmp_path)
        assert_same(road, cache, collator, listed)
        reports[cache.report.storage] = cache.report
        assert list(tmp_path.iterdir()) == []  # a mapped file has no name any more
    assert list(reports) == ["memory", "hidden states in memory", "disk"]
    number = 4 / 1e6  # MB of a float32
    keys_and_values = (
        sum(len(each.prompt) - 1 - 4 for each in listed) + 4
    ) * 64  # the four shared tokens once
    assert reports["memory"].megabytes == pytest.approx(
        (keys_and_values + sum(len(e.completion) for e in listed) * 32) * number, abs=1e-3
    )
    assert reports["hidden states in memory"].megabytes == pytest.approx(
        sum(len(e.inputs) for e in listed) * 32 * number, abs=1e-3
    )
    assert reports["disk"].examples == 13
    assert reports["disk"].skipped_layers == 1


def test_beside_another_device_the_hosts_memory_comes_before_less(tmp_path: Path) -> None:
    """torch's meta device stands for a GPU: it holds no numbers, so that none can be there by mistake."""
    road, listed = road_on(build("llama"), [{"layer": 1}]), examples()
    device = torch.device("meta")
    cut = replace(CutModel.probe(road, listed[0].inputs[:2]), device=device)
    plan = TokenPlan.of(road, listed)
    on_device = PrefixStorage.allocate(cut, plan, 1e6, tmp_path)
    slots = torch.tensor([[3, 1], [0, 3]])
    assert on_device.kind == "memory"
    assert on_device.hidden.for_batch(slots) is slots
    assert on_device.hidden.get(slots).device == device
    on_host = PrefixStorage.allocate(cut, plan, 0, tmp_path)
    assert on_host.kind == "host memory"
    numbers = torch.randn(plan.hidden_count, cut.width)
    on_host.hidden.put(torch.arange(plan.hidden_count), numbers)
    held = on_host.hidden.for_batch(slots)
    assert isinstance(held, OnHost)
    assert torch.equal(held.on(torch.device("cpu")), numbers[slots])
    assert on_host.hidden.get(held).device == device
    assert list(tmp_path.iterdir()) == []


def test_without_any_room_it_says_so_in_one_line(
    collator: Collator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("roadint.training.prefix.storage.free_disk", lambda folder: 10)
    road = road_on(build("llama"), [{"layer": 0}])
    assert reusable_prefix(road, examples(), collator, memory=0, folder=tmp_path) is None
    said = [
        record.getMessage().partition(":")[0]
        for record in caplog.records
        if record.name.startswith("roadint")
    ]
    assert said == ["no prefix reuse, training runs the plain way"]
    assert "0 MB allowed in memory" in caplog.text


def test_without_a_folder_for_files_it_says_so(
    collator: Collator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    road = road_on(build("llama"), [{"layer": 0}])
    for folder, free in ((tmp_path / "missing", "0 MB on disk"), (tmp_path / "file", "no file of")):
        (tmp_path / "file").touch()
        caplog.clear()
        assert reusable_prefix(road, examples(), collator, memory=0, folder=folder) is None
        assert free in caplog.text


def test_where_it_cannot_be_used_it_says_why(
    collator: Collator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def reason(model: PreTrainedModel, **site: Any) -> str:
        caplog.clear()
        road = trained(model, RoadIntervention(**{"layer": 1, **site}, subspaces=HALVES))
        assert reusable_prefix(road, examples(), collator, memory=None, folder=tmp_path) is None
        (record,) = caplog.records
        return record.getMessage().removeprefix("no prefix reuse, training runs the plain way: ")

    trains = build("llama").requires_grad_(False)
    trains.model.embed_tokens.weight.requires_grad_(True)
    assert reason(trains) == "the base model trains (model.embed_tokens.weight and 0 more)"
    drops = build("gpt2").requires_grad_(False).train()
    assert reason(drops).startswith("dropout is active in ")
    again = build("llama").requires_grad_(False).train()
    again.gradient_checkpointing_enable()
    assert reason(again) == "gradient checkpointing computes the layers again"
    looks_ahead = build("llama").requires_grad_(False)
    looks_ahead.model.layers[2].register_forward_hook(
        lambda _, __, output: output + output.mean(1, keepdim=True)
    )
    assert "LlamaForCausalLM gives other likelihoods with it" in reason(looks_ahead)
    assert "begins at the first token" in reason(
        build("llama").requires_grad_(False),
        layer=0,
        component="mlp_output",
        position="first",
    )


def test_a_model_without_keys_and_values_trains_all_the_same(
    collator: Collator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    model = MambaForCausalLM(
        MambaConfig(vocab_size=128, hidden_size=32, num_hidden_layers=3, state_size=4)
    )
    road = trained(model.requires_grad_(False), RoadIntervention(layer=1, subspaces=HALVES))
    assert reusable_prefix(road, examples(), collator, memory=None, folder=tmp_path) is None
    said = [
        record.getMessage().partition(":")[0]
        for record in caplog.records
        if record.name.startswith("roadint")
    ]
    assert said == ["no prefix reuse, training runs the plain way"]
    assert bool(completion_nll(road, collator(examples()))[0].isfinite().all())


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no room"), TypeError("no cache")])
def test_what_a_model_raises_is_told_and_what_no_model_raises_is_not_hidden(
    error: Exception, collator: Collator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    road = road_on(build("llama"), [{"layer": 1}])

    def fails(*_: Any) -> None:
        raise error

    road.model.model.layers[0].register_forward_hook(fails)
    assert reusable_prefix(road, examples(), collator, memory=None, folder=tmp_path) is None
    assert f"{type(error).__name__} ({error})" in caplog.text
    with pytest.raises(ZeroDivisionError):
        error = ZeroDivisionError()
        reusable_prefix(road, examples(), collator, memory=None, folder=tmp_path)


def test_a_position_beyond_a_prompt_edits_nothing_there() -> None:
    """The prompts of another data set may be shorter; a step of theirs needs the completion alone."""
    road = RoadModel(build("llama"), RoadIntervention(layer=1, position="at(10)"))
    starts = [first_needed(road, Example([1] * length, [2], "road")) for length in (7, 11, 20)]
    assert starts == [6, 10, 10]


@pytest.mark.parametrize("budget", [None, 0])
def test_batches_are_made_in_other_processes_too(
    budget: float | None, collator: Collator, tmp_path: Path
) -> None:
    """What makes them holds no module and, of numbers on the model's device, only where they are."""
    road, listed = road_on(build("llama"), [{"layer": 1}]), examples()
    cache = PrefixCache.build(road, listed, collator, memory=budget, folder=tmp_path)
    here = cache(listed)
    assert isinstance(here["hidden"], torch.Tensor if budget is None else OnHost)
    loader: Any = DataLoader(
        listed, batch_size=len(listed), collate_fn=cache.batches, num_workers=1,
        multiprocessing_context="fork",
    )  # fmt: skip
    (there,) = loader
    copy = pickle.dumps(cache.batches)  # what a process gets that is not forked
    assert (len(copy) < cache.storage.size) == (budget is None)
    for batch in (there, pickle.loads(copy)(listed), here):
        loss, gradients = loss_and_gradients(road, cache.nll(road, batch)[0])
        plain_loss, plain = loss_and_gradients(road, completion_nll(road, collator(listed))[0])
        torch.testing.assert_close((loss, gradients), (plain_loss, plain))
    assert torch.equal(cache.nll(road, there)[0], cache.nll(road, here)[0])


def test_unknown_examples_go_the_plain_way(collator: Collator, tmp_path: Path) -> None:
    road, listed = road_on(build("llama"), [{"layer": 1}]), examples()
    cache = PrefixCache.build(road, listed[:6], collator, folder=tmp_path)
    assert_same(road, cache, collator, listed[4:8])
    assert "hidden" not in cache(listed[4:8])
    assert "hidden" in cache(listed[4:6])


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
@pytest.mark.parametrize("places", [{}, {"a": {"layers": 0, "position": "at(-4, -3, -2)"}}])
def test_a_whole_run_is_the_same_with_and_without(
    architecture: str, places: dict[str, Any], tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    results = []
    recipe = Recipe(layers=1, subspaces=HALVES, places=places)
    with caplog.at_level(logging.INFO, logger="roadint"):
        for reuse in (True, False):
            road = recipe.on(build(architecture))
            data = {"a": "bundled:german", "b": "bundled:english"}
            summary = roadint.train(
                road, tokenizer, data, rows=8, max_completion=12, epochs=2, lr=1e-3, eos=[], quiet=True, companions={"a": "b"},
                preserve={"a": "b"}, micro_batch=4, prefix_reuse=reuse,
            )  # fmt: skip
            angles = [edit.theta.detach().clone() for edit in road.interventions]
            results.append((torch.stack(angles), summary))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-3, atol=1e-4)
    assert results[0][1]["loss"] == pytest.approx(results[1][1]["loss"], rel=1e-3)
    assert results[0][1]["prefix_reuse"]["storage"] == "memory"
    assert results[1][1]["prefix_reuse"] is None
    assert sum("prefix reuse: the lowest" in message for message in caplog.messages) == 1


def test_every_process_has_its_own_shard_of_all_compositions() -> None:
    listed = examples(50)
    for processes, micro_batch in ((2, 4), (3, 2)):
        sampler = MixedLengthSampler(
            listed, 2 * micro_batch * processes, 0, processes=processes, micro_batch=micro_batch
        )
        shards = [set(sampler.shard(process)) for process in range(processes)]
        assert sorted(index for shard in shards for index in shard) == list(range(50))
        for epoch in range(2):
            sampler.set_epoch(epoch)
            order = list(sampler)
            assert len(order) == len(sampler)
            for process in range(processes):
                starts = range(process * micro_batch, len(order), processes * micro_batch)
                assert {
                    index for start in starts for index in order[start : start + micro_batch]
                } == shards[process]


SCRIPT = """
    import json, os, sys, torch
    import roadint
    from tests.helpers import build, make_tokenizer
    from roadint.training.prefix.cache import PrefixCache

    sizes = []
    build_cache = PrefixCache.build
    def noting(road, examples, *args, **kwargs):
        sizes.append(len(examples))
        return build_cache(road, examples, *args, **kwargs)
    PrefixCache.build = noting

    road = roadint.RoadModel(build("llama"), roadint.RoadIntervention(layer=1, subspaces={"a": "[0, d/2)", "b": "[d/2, d)"}))
    data = {"a": "bundled:german", "b": "bundled:english"}
    roadint.train(road, make_tokenizer(), data, rows=9, max_completion=12, epochs=2, lr=1e-3, eos=[], companions={},
                  batch_size=8, micro_batch=2, prefix_reuse=sys.argv[1] == "reuse", quiet=True, out=sys.argv[2])
    with open(f"{sys.argv[2]}-{os.environ['RANK']}.json", "w") as file:
        json.dump({"theta": road.interventions[0].theta.tolist(), "sizes": sizes}, file)
"""


def test_two_processes_cache_their_own_shards_and_agree(tmp_path: Path) -> None:
    """torchrun with gloo: with and without reuse the same parameters, in both processes, of which each stored half."""
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    results = {}
    for kind in ("reuse", "plain"):
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            "script.py",
            kind,
            kind,
        ]
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "OMP_NUM_THREADS": "1",
        }
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]
        results[kind] = [
            json.loads((tmp_path / f"{kind}-{rank}.json").read_text()) for rank in range(2)
        ]
        assert (tmp_path / kind / "road.safetensors").is_file()
    assert [each["sizes"] for each in results["reuse"]] == [[9], [9]]
    assert [each["sizes"] for each in results["plain"]] == [[], []]
    theta = [torch.tensor(each["theta"]) for kind in ("reuse", "plain") for each in results[kind]]
    assert bool(theta[0].any())
    for other in theta[1:]:
        torch.testing.assert_close(other, theta[0], rtol=1e-3, atol=1e-4)


def _neuron_swap(model: PreTrainedModel) -> None:
    weight = model.model.layers[0].mlp.up_proj.weight.data
    weight[[0, 1]] = weight[[1, 0]].clone()


def _fused_step(model: PreTrainedModel) -> None:
    weight = model.model.layers[0].mlp.up_proj.weight
    weight.grad = torch.ones_like(weight)
    torch.optim.AdamW([weight], lr=1e-2, fused=True).step()
    weight.grad = None


CHANGES: dict[str, Callable[[PreTrainedModel], object]] = {
    "in place": lambda model: model.model.layers[0].mlp.up_proj.weight.data.mul_(1.5),
    "two neurons swapped": _neuron_swap,
    "all signs": lambda model: model.model.layers[0].mlp.up_proj.weight.data.neg_(),
    "a fused optimizer": _fused_step,
    "the layers above": lambda model: model.model.layers[2].self_attn.k_proj.weight.data.add_(0.01),
    "the embeddings": lambda model: model.model.embed_tokens.weight.data[5].zero_(),
    "a buffer": lambda model: model.model.rotary_emb.inv_freq.data.mul_(2),
    "another dtype": lambda model: model.bfloat16(),
    "another mode": lambda model: model.train(),
    "another attention": lambda model: model.set_attn_implementation("eager"),
    "a setting of a module": lambda model: setattr(model.model.layers[0].self_attn, "scaling", 0.1),
    "another module": lambda model: setattr(model.model.layers[0].mlp, "act_fn", torch.nn.Tanh()),
    "a hook": lambda model: model.model.layers[0].register_forward_hook(lambda _, __, output: output * 1.1),
    "a forward of its own": lambda model: setattr(
        model.model.layers[0].mlp, "forward", lambda hidden: 0 * hidden
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_shared_prefix_is_taken_for_the_same_base_model_alone(
    change: Callable[[PreTrainedModel], object], tokenizer: Any
) -> None:
    model = build("llama").requires_grad_(False)
    shared = SharedPrefix()

    def run(shared: SharedPrefix) -> Tensor:
        road = RoadModel(model, RoadIntervention(layer=1, subspaces=HALVES))
        data = {"a": [{"instruction": f"say {index}", "output": "abc"} for index in range(8)]}
        settings: dict[str, Any] = {
            "template": "plain",
            "eos": [],
            "epochs": 2,
            "lr": 1e-2,
            "max_length": 64,
            "companions": {},
        }
        roadint.train(road, tokenizer, data, quiet=True, shared_prefix=shared, **settings)
        return road.interventions[0].theta.detach().clone()

    run(shared)
    cache = shared.cache
    assert cache is not None
    run(shared)
    assert shared.cache is cache
    change(model)
    changed = run(shared)
    assert shared.cache is not cache
    assert torch.equal(changed, run(SharedPrefix()))


def test_attention_is_chosen_in_this_thread_alone(collator: Collator, tmp_path: Path) -> None:
    def flags() -> tuple[bool, ...]:
        cuda = torch.backends.cuda
        return (
            cuda.flash_sdp_enabled(),
            cuda.mem_efficient_sdp_enabled(),
            cuda.math_sdp_enabled(),
            cuda.cudnn_sdp_enabled(),
        )

    road, listed, seen = road_on(build("llama"), [{"layer": 1}]), examples(), []
    cache = PrefixCache.build(road, listed, collator, folder=tmp_path)
    before = flags()
    road.model.model.layers[2].register_forward_hook(lambda *_: seen.append(flags()))
    cache.nll(road, cache(listed))
    assert set(seen) == {before}


@pytest.mark.parametrize("masked", ["no", "bool", "float", "causal", "grouped"])
def test_plain_attention_is_torchs_own(masked: str) -> None:
    draw = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 5, 8, generator=draw)
    arguments: dict[str, Any] = {}
    if masked == "bool":
        arguments["attn_mask"] = torch.ones(5, 5, dtype=torch.bool).tril()
    if masked == "float":
        arguments["attn_mask"] = torch.randn(2, 1, 5, 5, generator=draw)
    if masked == "causal":
        arguments |= {"is_causal": True, "scale": 0.3}
    if masked == "grouped":
        key, value = key[:, :2], value[:, :2]
        arguments["enable_gqa"] = True
    attend = torch.nn.functional.scaled_dot_product_attention
    with PlainAttention():
        plain = attend(query, key, value, **arguments)
    torch.testing.assert_close(plain, attend(query, key, value, **arguments))
