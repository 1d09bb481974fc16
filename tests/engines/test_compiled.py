"""`RoadModel.compile`: the numbers of plain calls, and one graph for all compositions."""

import copy
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from transformers import GenerationConfig, PreTrainedModel, StaticCache

import roadint
from roadint import RoadError, RoadIntervention, RoadModel
from roadint.engines.transformers.compiled.places import site_place
from roadint.engines.transformers.compiled.root import Keeping
from roadint.grammar.composition import Composition
from tests.helpers import HALVES, IDS, with_adapters
from tests.vision import inputs_of, llava

MASK = torch.ones_like(IDS)
MASK[1, :2] = 0
SHORT: dict[str, Any] = {"attention_mask": MASK, "max_new_tokens": 6, "do_sample": False}
BATCHES: list[list[str | None]] = [
    ["a", None, "0.5*b + everywhere", "x + a"],
    ["x", "y", "0.5*z", "everywhere + x"],
    ["x - y"] * 4,
    [None, "z", None, "-1.5*b"],
]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def randomise(module: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def make_road(model: PreTrainedModel, adapters: str = "xyz") -> RoadModel:
    model.requires_grad_(False)
    road = RoadModel(
        model,
        [
            RoadIntervention(layer=0, subspaces=HALVES, variant="road_4"),
            RoadIntervention(
                layer=1,
                component="mlp_output",
                subspaces={"everywhere": "[0, d)"},
                basis="hadamard",
                position="all",
                phase="both",
            ),
        ],
    )
    for name in adapters:
        road.add_adapter(name)
    for part in (road.interventions, road.adapters):
        randomise(part)
    return road


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


def logits(road: RoadModel, compose: Any, **more: Any) -> torch.Tensor:
    with torch.no_grad():
        return road(IDS, attention_mask=MASK, compose=compose, **more).logits  # type: ignore[no-any-return]


def test_calls_give_what_uncompiled_calls_give(model: PreTrainedModel) -> None:
    road = make_road(model)
    plain = [logits(road, batch) for batch in BATCHES]
    tokens = [road.generate(IDS, compose=batch, **SHORT) for batch in BATCHES]
    road.compile(backend="aot_eager")
    for batch, expected, answer in zip(BATCHES, plain, tokens, strict=True):
        kept = MASK.bool()
        torch.testing.assert_close(logits(road, batch)[kept], expected[kept])
        assert torch.equal(road.generate(IDS, compose=batch, **SHORT), answer)


def test_one_graph_serves_all_that_changes_between_calls(llama: PreTrainedModel) -> None:
    road = make_road(llama)
    road.compile(backend="aot_eager")
    road.generate(IDS, compose=BATCHES[0], **SHORT)
    made = graphs()
    assert made == 1
    for batch in (*BATCHES, BATCHES[0][::-1], ["0.25*a + y", "b", "x - z", None]):
        road.generate(IDS, compose=batch, **SHORT)
    road.remove_adapter("y")
    road.add_adapter("w")
    randomise(road.adapters["w"], seed=7)
    road.generate(IDS, compose=["w", "w + x", None, "a"], **SHORT)
    assert graphs() == made, "no recompilation"
    assert not counters["graph_break"]
    plain = make_road(llama, "xz")
    plain.add_adapter("w")
    randomise(plain.adapters["w"], seed=7)
    for name in ("x", "z"):
        plain.adapters[name].load_state_dict(road.adapters[name].state_dict())
    batch = ["w", "w + x", None, "a"]
    assert torch.equal(
        road.generate(IDS, compose=batch, **SHORT), plain.generate(IDS, compose=batch, **SHORT)
    )


def test_values_that_change_act_at_once(llama: PreTrainedModel) -> None:
    road, twin = make_road(llama), make_road(llama)
    road.compile(backend="aot_eager")
    for seed in range(3):
        for one in (road, twin):
            randomise(one.interventions, seed)
            one.adapters["x"].theta.data.mul_(-1.5)
        expected = twin.generate(IDS, compose=BATCHES[1], **SHORT)
        assert torch.equal(road.generate(IDS, compose=BATCHES[1], **SHORT), expected)
    assert graphs() == 1


def test_more_compositions_than_slots_make_room(llama: PreTrainedModel) -> None:
    road = make_road(llama)
    ids = IDS.repeat(5, 1)
    batch = [f"{number / 20}*x + a" for number in range(20)]
    expected = road.generate(ids, compose=batch, max_new_tokens=4, do_sample=False)
    road.compile(backend="aot_eager")
    road.generate(IDS, compose="x", max_new_tokens=4, do_sample=False)
    answer = road.generate(ids, compose=batch, max_new_tokens=4, do_sample=False)
    assert torch.equal(answer, expected)


def test_a_new_target_or_site_makes_a_new_graph(llama: PreTrainedModel) -> None:
    road = make_road(llama, "")
    road.compile(backend="aot_eager")
    road.generate(IDS, compose="a", **SHORT)
    road.add_adapter("q", targets=["q_proj"], pairing="half", variant="road_2")
    randomise(road.adapters["q"])
    answer = road.generate(IDS, compose="q + a", **SHORT)
    assert graphs() == 2
    road._compiled = None
    assert torch.equal(answer, road.generate(IDS, compose="q + a", **SHORT))


def test_adapters_of_several_layouts_act_together(llama: PreTrainedModel) -> None:
    road = make_road(llama, "")
    road.add_adapter("q", targets=["q_proj", "o_proj"])
    road.add_adapter("m", targets=["up_proj"], layers=[1], variant="road_4")
    road.add_adapter("all_of_them")
    randomise(road.adapters)
    batches: list[Any] = [["q", "m", "q + m", None], ["all_of_them", "q", "m", "a"], ["m"] * 4]
    expected = [road.generate(IDS, compose=batch, **SHORT) for batch in batches]
    road.compile(backend="aot_eager")
    for batch, answer in zip(batches, expected, strict=True):
        assert torch.equal(road.generate(IDS, compose=batch, **SHORT), answer)
    assert graphs() == 1


def test_beams_and_returned_sequences_share_their_row(llama: PreTrainedModel) -> None:
    road = make_road(llama)
    more = {**SHORT, "num_beams": 3, "num_return_sequences": 2}
    expected = road.generate(IDS, compose=BATCHES[0], **more)
    road.compile(backend="aot_eager")
    assert torch.equal(road.generate(IDS, compose=BATCHES[0], **more), expected)


def test_a_generation_config_keeps_what_it_says(llama: PreTrainedModel) -> None:
    road = make_road(llama)
    config = GenerationConfig(max_new_tokens=6, do_sample=False, return_dict_in_generate=True)
    expected = road.generate(IDS, config, attention_mask=MASK, compose=BATCHES[0])
    road.compile(backend="aot_eager")
    first = road.generate(IDS, config, attention_mask=MASK, compose=BATCHES[0])
    second = road.generate(IDS, config, attention_mask=MASK, compose=BATCHES[1])
    assert torch.equal(first.sequences, expected.sequences)
    assert config.cache_implementation is None, "the caller's own is not written to"
    caches = [
        next(v for k, v in out.items() if k in ("cache", "past_key_values"))
        for out in (first, second)
    ]
    assert caches[0] is not caches[1], "a cache that a caller has is not used again"


def test_rows_that_compose_nothing_are_untouched(llama: PreTrainedModel) -> None:
    road = make_road(llama)
    road.compile(backend="aot_eager")
    with torch.no_grad():
        bare = llama(IDS, attention_mask=MASK).logits
    assert torch.equal(logits(road, None), bare)
    mixed = logits(road, ["x + a", None, "b", None])
    torch.testing.assert_close(mixed[3], bare[3])


def test_the_callers_model_is_left_alone(llama: PreTrainedModel) -> None:
    road = make_road(llama)
    before = {name: dict(vars(module)) for name, module in llama.named_modules()}
    road.compile(backend="aot_eager")
    road.generate(IDS, compose=BATCHES[0], **SHORT)
    for name, module in llama.named_modules():
        assert vars(module).keys() == before[name].keys(), name
        assert all(vars(module)[key] is before[name][key] for key in before[name]), name


def test_a_module_that_is_replaced_is_seen(llama: PreTrainedModel) -> None:
    road = make_road(llama)
    road.compile(backend="aot_eager")
    first = logits(road, "x")
    llama.model.layers[2].mlp.down_proj = nn.Linear(48, 32, bias=False)
    second = logits(road, "x")
    road._compiled = None
    assert not torch.allclose(first, second)
    torch.testing.assert_close(second, logits(road, "x"))


def same_as_uncompiled(road: RoadModel, ask: Any) -> None:
    answer = ask()
    compiled, road._compiled = road._compiled, None
    torch.testing.assert_close(answer, ask())
    road._compiled = compiled


def test_an_attribute_that_changes_is_seen(llama: PreTrainedModel) -> None:
    road = make_road(llama)
    road.compile(backend="aot_eager")
    kept = MASK.bool()
    first = logits(road, "x")
    llama.model.layers[2].self_attn.scaling = 2.0
    assert not torch.allclose(first[kept], logits(road, "x")[kept])
    same_as_uncompiled(road, lambda: logits(road, "x")[kept])


def test_hooks_that_come_and_go_are_seen(
    llama: PreTrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    road = make_road(llama)
    road.compile(backend="aot_eager")
    before = logits(road, "x")
    made = graphs()
    norm = llama.model.layers[1].post_attention_layernorm
    hook = norm.register_forward_hook(lambda module, args, output: -3 * output)
    with caplog.at_level(logging.WARNING):
        assert not torch.allclose(before, logits(road, "x"))
        same_as_uncompiled(road, lambda: logits(road, "x"))
    assert uncompiled_for(caplog)[0].endswith("layers.1.post_attention_layernorm has a hook")
    hook.remove()
    torch.testing.assert_close(logits(road, "x"), before)
    assert graphs() == made
    with torch.no_grad():
        llama(IDS, output_hidden_states=True)  # leaves hooks that do nothing
    assert torch.equal(logits(road, "x"), before)
    assert len(uncompiled_for(caplog)) == 1


def test_caches_of_other_numbers_are_not_used_again(llama: PreTrainedModel) -> None:
    road = make_road(llama)
    road.compile(backend="aot_eager")

    def ask() -> torch.Tensor:
        return road.generate(IDS, compose=BATCHES[0], **SHORT)  # type: ignore[no-any-return]

    with torch.inference_mode():
        first = ask()
    assert torch.equal(ask(), first)
    same_as_uncompiled(road, ask)
    with torch.autocast("cpu", torch.bfloat16):
        ask()
    assert torch.equal(ask(), first)
    llama.bfloat16()
    ask()
    llama.double()
    same_as_uncompiled(road, ask)


def test_turns_in_a_basis_stay_in_full_precision() -> None:
    """Under autocast as well, where products would be in half precision."""
    edit = RoadIntervention(layer=1, basis="random", subspaces=HALVES, embed_dim=32)
    randomise(edit)
    place = site_place(edit, "path", 1)
    rotation, _ = edit.as_turn(edit.rows(edit.strengths([Composition((("a", 1.0),))])))  # type: ignore[misc]
    place.slots.put(rotation, slice(None))
    place.slots.point(torch.zeros(12, dtype=torch.long))
    states = torch.randn(4, 3, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        turned = place(nn.Identity(), (), states)
    torch.testing.assert_close(turned, edit(states, subspaces="a"))
    assert not torch.equal(turned, states)


@pytest.mark.parametrize("changes", [{"basis_seed": 1}, {"pairing": 4}, {"basis": "identity"}])
def test_values_of_another_basis_or_pairing_are_compiled_anew(
    changes: dict[str, Any], llama: PreTrainedModel
) -> None:
    """Which load_state_dict takes, as it takes other values."""

    def made(**more: Any) -> RoadModel:
        edit = RoadIntervention(layer=1, subspaces=HALVES, **{"basis": "random", **more})
        road = RoadModel(llama.requires_grad_(False), edit)
        randomise(road.interventions)
        return road

    road, other = made(), made(**changes)
    expected = logits(other, ["a", None, "0.5*b", "a"])
    road.compile(backend="aot_eager")
    logits(road, ["a", None, "b", "a"])
    road.interventions.load_state_dict(other.interventions.state_dict())
    kept = MASK.bool()
    found = logits(road, ["a", None, "0.5*b", "a"])
    torch.testing.assert_close(found[kept], expected[kept], rtol=1e-4, atol=1e-5)


def test_a_model_of_double_precision_keeps_it(llama: PreTrainedModel) -> None:
    road = make_road(llama.double())
    batch: list[str | None] = ["x + a", None, "0.5*b", "y"]
    expected = logits(road, batch)
    road.compile(backend="aot_eager")
    answer = logits(road, batch)
    kept = MASK.bool()
    torch.testing.assert_close(answer[kept], expected[kept], rtol=1e-10, atol=1e-10)


def test_gradients_of_the_model_and_of_inputs_are_wanted_too(llama: PreTrainedModel) -> None:
    road = make_road(llama)
    road.interventions.requires_grad_(False)
    road.adapters.requires_grad_(False)
    embeddings = llama.get_input_embeddings()(IDS).detach().requires_grad_()

    def gradient() -> torch.Tensor:
        calls = [road(inputs_embeds=embeddings, compose=batch).logits for batch in BATCHES[:2]]
        (found,) = torch.autograd.grad(sum(calls).square().sum(), embeddings)
        return found  # type: ignore[no-any-return]

    expected = gradient()
    road.compile(backend="aot_eager")
    torch.testing.assert_close(gradient(), expected)


def uncompiled_for(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "uncompiled" in record.getMessage()]


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda road: road.add_adapter("l", lora_rank=2), "LoRA"),
        (lambda road: road.attach([]), "hidden states"),
    ],
)
def test_what_cannot_be_in_the_graph_runs_uncompiled_and_says_so(
    llama: PreTrainedModel, caplog: pytest.LogCaptureFixture, prepare: Any, reason: str
) -> None:
    road = make_road(llama)
    prepare(road)
    randomise(road.adapters)
    batch, more = ["x"] * 4, {}
    if reason == "LoRA":
        batch = ["l", "x", None, "a"]
    else:
        more = {"output_hidden_states": True}
    expected = logits(road, batch, **more)
    road.compile(backend="aot_eager")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert torch.equal(logits(road, batch, **more), expected)
    assert len(uncompiled_for(caplog)) == 1
    assert reason in uncompiled_for(caplog)[0]


def test_other_kinds_and_interchanges_run_uncompiled(llama: PreTrainedModel) -> None:
    steering = roadint.SteeringIntervention(layer=1, subspaces={"s": "[0, d)"})
    road = RoadModel(llama.requires_grad_(False), steering)
    randomise(road.interventions)
    expected = logits(road, "s")
    road.compile(backend="aot_eager")
    assert torch.equal(logits(road, "s"), expected)
    assert graphs() == 0


def test_gradients_are_those_of_the_plain_call(llama: PreTrainedModel) -> None:
    road = make_road(llama)
    road.compile(backend="aot_eager")
    road(IDS, attention_mask=MASK, compose="a + x").logits.sum().backward()
    assert road.adapters["x"].theta.grad is not None
    assert bool(road.adapters["x"].theta.grad.any())


def test_threads_take_turns_and_a_call_may_be_inside_another(llama: PreTrainedModel) -> None:
    road = make_road(llama)
    expected = [road.generate(IDS, compose=batch, **SHORT) for batch in BATCHES]
    road.compile(backend="aot_eager")
    inner: list[torch.Tensor] = []

    def look(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        inner.append(logits(road, BATCHES[1]))
        return scores

    answer = road.generate(IDS, compose=BATCHES[0], logits_processor=[look], **SHORT)
    assert torch.equal(answer, expected[0])
    answers: dict[int, torch.Tensor] = {}

    def ask(number: int) -> None:
        answers[number] = road.generate(IDS, compose=BATCHES[number % 4], **SHORT)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, answer in answers.items():
        assert torch.equal(answer, expected[number % 4])
    assert len(answers) == 8
    road._compiled = None
    for found in inner:
        torch.testing.assert_close(found, logits(road, BATCHES[1]))


def test_a_copy_has_no_graph_and_an_unknown_option_is_refused(llama: PreTrainedModel) -> None:
    road = make_road(llama)
    road.compile(backend="aot_eager")
    expected = road.generate(IDS, compose=BATCHES[0], **SHORT)
    twin = copy.deepcopy(road)
    assert torch.equal(twin.generate(IDS, compose=BATCHES[0], **SHORT), expected)
    with pytest.raises(RoadError, match="unknown option of compile 'backened'.*'backend'"):
        road.compile(backened="inductor")


def test_a_cache_is_kept_until_beams_move_it(llama: PreTrainedModel) -> None:
    """A CUDA graph has the addresses of its keys and values."""

    def cache() -> StaticCache:
        made = StaticCache(config=llama.config, max_cache_len=8)
        llama(IDS, past_key_values=made)
        return made

    keeping, first = Keeping(llama, lambda args, kwargs: None, {}), cache()
    assert keeping.cache_for(first, len(IDS)) is first
    assert keeping.cache_for(cache(), len(IDS)) is first
    llama(IDS, past_key_values=first)
    first.reorder_cache(torch.arange(len(IDS)))
    new = cache()
    assert keeping.cache_for(new, len(IDS)) is new


@torch.no_grad()
def test_rows_with_images() -> None:
    road = with_adapters(llava(), "x", "y")
    counts, compose = [1, 0, 2], ["x", None, "0.5*y"]
    inputs = inputs_of(road.model, counts)
    greedy = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    logits = road(**inputs, compose=compose).logits
    tokens = road.generate(**inputs, **greedy, compose=compose)
    road.compile(backend="eager", fullgraph=False)
    found = road(**inputs, compose=compose).logits
    torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(road.generate(**inputs, **greedy, compose=compose), tokens)
