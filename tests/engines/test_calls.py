"""Calls inside, beside and after each other: each sees what was asked of it, or is refused."""

import copy
import gc
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
)
from transformers.generation.configuration_utils import CompileConfig

import roadint
from roadint import RoadError, RoadIntervention, RoadModel
from tests.helpers import build, randomised, trained, with_adapters

IDS = torch.arange(10, 28).reshape(2, 9)
GREEDY: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}


def everywhere(model: Any, phase: str = "both") -> RoadModel:
    return trained(
        model,
        RoadIntervention(
            layer=1, position="all", phase=phase, subspaces={"a": "[0, d/2)", "b": "[d/2, d)"}
        ),
    )


class Asking(LogitsProcessor):
    """Asks the base model in the middle of a generation."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.found = model, []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.found.append(self.model(input_ids=input_ids).logits[:, -1])
        return scores


def test_the_base_model_inside_a_call_is_the_base_model(model: PreTrainedModel) -> None:
    road = everywhere(model)
    road.add_adapter("x")
    randomised(road.adapters["x"], 3)
    asking = Asking(model)
    tokens = road.generate(
        input_ids=IDS, compose="a + b + x", logits_processor=LogitsProcessorList([asking]), **GREEDY
    )
    assert torch.equal(tokens, road.generate(input_ids=IDS, compose="a + b + x", **GREEDY))
    for step, found in enumerate(asking.found):
        torch.testing.assert_close(found, model(input_ids=tokens[:, : 9 + step]).logits[:, -1])

    inside: list[Tensor] = []
    layers = roadint.architecture.layers.find_layers(model)[1]

    def ask(*_: Any) -> None:
        handle.remove()
        inside.extend(
            [
                model(input_ids=IDS).logits,
                road(input_ids=IDS, compose=None).logits,
                road(input_ids=IDS, compose="b").logits,
            ]
        )

    handle = layers[2].register_forward_hook(ask)
    outer = road(input_ids=IDS, compose="a").logits
    base = model(input_ids=IDS).logits
    assert torch.equal(inside[0], base)
    assert torch.equal(inside[1], base)
    assert torch.equal(inside[2], road(input_ids=IDS, compose="b").logits)
    assert torch.equal(outer, road(input_ids=IDS, compose="a").logits)


def test_hidden_states_are_the_edited_ones_in_every_call(model: PreTrainedModel) -> None:
    road = trained(model)
    plain = road(input_ids=IDS, compose="a + b")
    calls = [road(input_ids=IDS, compose="a + b", output_hidden_states=True) for _ in range(3)]
    base = model(input_ids=IDS, output_hidden_states=True)
    again = road(input_ids=IDS, compose="a + b", output_hidden_states=True)
    site = road.interventions[0]
    expected = site.edit(base.hidden_states[2][:, -1], site.rotation())
    for output in (*calls, again):
        assert len(output.hidden_states) == len(base.hidden_states)
        torch.testing.assert_close(output.hidden_states[2][:, -1], expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(output.hidden_states[2][:, :-1], base.hidden_states[2][:, :-1])
        assert torch.equal(output.logits, plain.logits)
    generated = road.generate(
        input_ids=IDS,
        compose="a + b",
        output_hidden_states=True,
        return_dict_in_generate=True,
        **GREEDY,
    )
    torch.testing.assert_close(generated.hidden_states[0][2][:, -1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("phase", ["prompt", "generated"])
@pytest.mark.parametrize(
    "wrapped", ["PeftModel", "torch.compile", "model.compile", "compiled layer"]
)
def test_wrapped_and_compiled_models_give_what_the_model_gives(wrapped: str, phase: str) -> None:
    def on(wrap: Callable[[Any], Any]) -> RoadModel:
        road = everywhere(wrap(build("llama")), phase)
        randomised(road.add_adapter("x", targets=["up_proj", "k_proj"]), 4)
        return road

    def compiled_layer(model: Any) -> Any:
        model.model.layers[1].compile(backend="eager")
        return model

    def compiled(model: Any) -> Any:
        model.compile(backend="eager")
        return model

    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    wraps: dict[str, Callable[[Any], Any]] = {
        "PeftModel": lambda model: peft.get_peft_model(
            model, lora
        ).eval(),  # one that changes nothing
        "torch.compile": lambda model: torch.compile(model, backend="eager"),
        "model.compile": compiled,
        "compiled layer": compiled_layer,
    }
    plain, road = on(lambda model: model), on(wraps[wrapped])
    base = road.generate(input_ids=IDS, compose=None, **GREEDY)
    for compose in ("a", "b + x", "x", None):
        expected = plain.generate(input_ids=IDS, compose=compose, **GREEDY)
        assert torch.equal(road.generate(input_ids=IDS, compose=compose, **GREEDY), expected)
        assert compose is None or "x" not in compose or not torch.equal(expected, base)
        with torch.no_grad():
            expected = plain(
                input_ids=IDS, compose=compose, prompt_length=torch.tensor([5, 5])
            ).logits
            found = road(input_ids=IDS, compose=compose, prompt_length=torch.tensor([5, 5])).logits
        torch.testing.assert_close(found, expected)


def test_a_compiled_road_gives_what_the_road_gives() -> None:
    torch._dynamo.reset()
    road = trained(build("llama"))
    randomised(road.add_adapter("x"), 4)
    with torch.no_grad():
        expected = {
            compose: road(input_ids=IDS, compose=compose).logits
            for compose in (None, "a", "x", "b + x")
        }
        compiled = torch.compile(road, backend="eager")
        for compose in (None, "a", "x", None, "b + x"):
            torch.testing.assert_close(
                compiled(input_ids=IDS, compose=compose).logits, expected[compose]
            )


@pytest.mark.parametrize("cache", ["static", "dynamic"])
def test_compiled_caches_lose_nothing(cache: str) -> None:
    settings: dict[str, Any] = {"cache_implementation": cache} if cache != "dynamic" else {}
    if cache == "static":
        settings["compile_config"] = CompileConfig(backend="eager", fullgraph=False)
        settings["compile_config"]._compile_all_devices = True
    torch._dynamo.reset()
    road = everywhere(build("llama"), "generated")
    randomised(road.add_adapter("x"), 3)
    expected = {
        compose: road.generate(input_ids=IDS, compose=compose, **GREEDY)
        for compose in (None, "a", "x", "b + x")
    }
    for compose in (None, "a", "x", None, "b + x", "a"):
        assert torch.equal(
            road.generate(input_ids=IDS, compose=compose, **GREEDY, **settings),
            expected[compose],
        )


@pytest.mark.parametrize("kind", list(CheckpointImpl))
def test_layers_that_are_computed_again_get_the_same_gradients_or_are_refused(
    kind: CheckpointImpl,
) -> None:
    def run(road: RoadModel) -> tuple[Tensor, Tensor]:
        embedded = road.model.get_input_embeddings()(IDS).detach().requires_grad_()
        loss = (
            road(compose="a + x", inputs_embeds=embedded, use_cache=False)
            .logits.log_softmax(-1)[..., 3]
            .sum()
        )
        loss.backward()
        return road.interventions[0].theta.grad, road.adapters["x"].theta.grad  # type: ignore[return-value]

    def on(model: Any) -> RoadModel:
        road = trained(model.requires_grad_(False))
        randomised(road.add_adapter("x", targets=["o_proj", "gate_proj"]), 4)
        return road

    expected = run(on(build("llama")))
    model = build("llama")
    layer = type(model.model.layers[0])
    road = on(model)
    apply_activation_checkpointing(
        model,
        checkpoint_wrapper_fn=lambda module: checkpoint_wrapper(module, checkpoint_impl=kind),
        check_fn=lambda module: isinstance(module, layer),
    )
    road = on(model)
    if kind is CheckpointImpl.REENTRANT:
        with pytest.raises(
            RoadError, match="runs without gradients in a call that wants them.*use_reentrant=False"
        ):
            run(road)
        return
    for found, right in zip(run(road), expected, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)


def test_merging_is_refused_beside_a_call_and_in_it() -> None:
    road = with_adapters(build("llama"), "x")
    at, go, out = threading.Event(), threading.Event(), {}
    layer = road.model.model.layers[1]

    def pause(*_: Any) -> None:
        if threading.current_thread().name == "other":
            at.set()
            go.wait(30)

    handle = layer.register_forward_pre_hook(pause)
    with torch.no_grad():
        expected = {compose: road(input_ids=IDS, compose=compose).logits for compose in ("x", None)}

        def call(compose: str | None) -> None:
            with torch.no_grad():
                out[compose] = road(input_ids=IDS, compose=compose).logits

        for compose in ("x", None):
            at.clear()
            go.clear()
            other = threading.Thread(target=call, args=(compose,), name="other")
            other.start()
            assert at.wait(30)
            for merge in (road.merge, lambda: road.merged("x").__enter__()):
                with pytest.raises(
                    RoadError, match="while 1 calls of this model run: expected none"
                ):
                    merge()
            go.set()
            other.join()
            torch.testing.assert_close(out[compose], expected[compose])
        handle.remove()
        inside = layer.register_forward_hook(lambda *_: road.merge("x"))
        with pytest.raises(RoadError, match="calls of this model run"):
            road(input_ids=IDS, compose=None)
        inside.remove()
        with road.running(), pytest.raises(RoadError, match="calls of this model run"):
            road.merge("x")
        with road.merged("x"):
            torch.testing.assert_close(road(input_ids=IDS).logits, expected["x"], rtol=0, atol=1e-4)


def test_merged_none_is_not_the_base_model() -> None:
    road = RoadModel(build("llama"), RoadIntervention(layer=1, subspaces={"german": "[0, d/2)"}))
    randomised(road.add_adapter("x"), 3)
    with road.merged("x"):
        for compose in (None, "none", ["german", None]):
            with pytest.raises(
                RoadError,
                match="is the base model; adapters are merged into the weights, as 'x': unmerge",
            ):
                road(input_ids=IDS, compose=compose)
            with pytest.raises(RoadError, match="merged"):
                road.generate(input_ids=IDS, compose=compose, **GREEDY)
        road(input_ids=IDS, compose=["german", "all"])
    assert torch.equal(road(input_ids=IDS, compose=None).logits, road.model(input_ids=IDS).logits)


def test_the_end_of_merged_waits_for_calls() -> None:
    road = with_adapters(build("llama"), "x")
    expected = road(input_ids=IDS, compose="x").logits.detach()
    started, wrong = threading.Event(), []

    def work() -> None:
        for _ in range(40):
            with torch.no_grad():
                found = road(input_ids=IDS).logits
            started.set()
            if not torch.allclose(found, expected, atol=1e-4):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(3)]
    with road.merged("x"):
        for thread in threads:
            thread.start()
        started.wait(30)
    for thread in threads:
        thread.join()
    assert not wrong


def churning(
    road: RoadModel, change: Callable[[], None], ask: Callable[[], Tensor], rounds: int = 60
) -> Counter[str]:
    """What four threads got while a fifth changed what lies on the model."""
    with torch.no_grad():
        expected = ask()
    seen: Counter[str] = Counter()
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            try:
                with torch.no_grad():
                    right = torch.allclose(ask(), expected, atol=1e-4)
                seen["right" if right else "wrong"] += 1
            except RoadError:
                seen["refused"] += 1
            except Exception as error:
                seen[repr(error)] += 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(rounds):
        change()
    over.set()
    for thread in threads:
        thread.join()
    return seen


def test_adapters_and_checkpoints_come_and_go_beside_calls(tmp_path: Any) -> None:
    road = with_adapters(build("llama"), "x", "y")
    road.save_pretrained(tmp_path / "y", ["y"])
    x = road.adapters["x"]

    def there_and_back() -> None:
        road.remove_adapter("x")
        road.attach([x])

    seen = churning(road, there_and_back, lambda: road(input_ids=IDS, compose="x").logits)
    assert set(seen) <= {"right", "refused"}, seen
    names = iter(f"n{number}" for number in range(1000))
    seen = churning(
        road,
        lambda: road.load_adapter(tmp_path / "y", next(names)),
        lambda: road(input_ids=IDS, compose="x").logits,
    )
    assert set(seen) == {"right"}, seen
    assert len(road.adapters) == 62

    model = build("llama")
    for name, layer in (("q", 0), ("s", 2)):
        trained(model, RoadIntervention(layer=layer, subspaces={name: "[0, d/2)"})).save_pretrained(
            tmp_path / name
        )
    both = RoadModel.from_pretrained(model, {"one": tmp_path / "q", "two": tmp_path / "s"})

    def out_and_in() -> None:
        both.remove_checkpoint("one")
        both.add_checkpoint(tmp_path / "q", "one")

    seen = churning(both, out_and_in, lambda: both(input_ids=IDS, compose="s@two").logits)
    assert set(seen) == {"right"}, seen


def test_scored_calls_overlap() -> None:
    road = everywhere(build("llama"))
    where = torch.tensor([[0, 1, 1], [3, 4, 8]]), torch.tensor([5, 6, 7])
    seen = churning(
        road,
        lambda: road.token_nll(*where, input_ids=IDS, compose="b", use_cache=False),
        lambda: road.token_nll(*where, input_ids=IDS, compose="a", use_cache=False),
    )
    assert set(seen) == {"right"}, seen
    assert not any("forward" in vars(module) for module in road.model.modules())


@pytest.mark.parametrize("how", ["assistant", "lookup"])
def test_drafted_tokens_are_edited_as_any(model: PreTrainedModel, how: str) -> None:
    road = everywhere(model)
    assistant = build("llama")
    given = {
        "input_ids": torch.arange(3, 10)[None].repeat(1, 2),
        "max_new_tokens": 8,
        "do_sample": False,
        "pad_token_id": 0,
    }
    expected = road.generate(**given)
    drafted = (
        {"assistant_model": assistant} if how == "assistant" else {"prompt_lookup_num_tokens": 3}
    )
    assert torch.equal(road.generate(**given, **drafted), expected)
    with pytest.raises(RoadError, match="assistant_early_exit"):
        road.generate(**given, assistant_early_exit=2)
    assert model.config.num_hidden_layers == 3


def test_states_that_a_tower_captures_are_not_captured_twice() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    vision = CLIPVisionConfig(
        **sizes, num_hidden_layers=4, image_size=8, patch_size=4, projection_dim=32
    )
    text = LlamaConfig(**sizes, vocab_size=128, num_hidden_layers=3)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision, text_config=text, image_token_index=100, image_seq_length=4
        )
    ).eval()
    seen = {
        "input_ids": torch.tensor([[1, 100, 100, 100, 100, 5, 6, 7]]),
        "pixel_values": torch.randn(1, 3, 8, 8),
    }
    with torch.no_grad():
        expected = copy.deepcopy(model)(**seen).logits
        road = RoadModel(model)
        randomised(
            road.add_adapter("seen", targets=r".*vision.*layers\.[12]\.self_attn\.q_proj"), 1
        )
        for _ in range(2):
            live = road(**seen, compose="seen").logits
            assert not torch.allclose(live, expected, atol=1e-3)
            assert torch.equal(model(**seen).logits, expected)
        with road.merged("seen") as merged:
            torch.testing.assert_close(merged(**seen).logits, live)


def test_a_call_leaves_nothing_for_the_garbage_collector() -> None:
    road = everywhere(build("llama"))
    ids, scored = torch.arange(3, 10)[None], (torch.tensor([[0, 0], [2, 5]]), torch.tensor([5, 6]))
    calls: list[Callable[[], Any]] = [
        lambda: road(input_ids=ids),
        lambda: road.token_nll(*scored, input_ids=ids),
        lambda: road.collect(None, {"input_ids": ids}),
        lambda: road.generate(input_ids=ids, max_new_tokens=3, pad_token_id=0),
    ]
    for call in calls:
        with torch.no_grad():
            call()
            gc.collect()
            gc.disable()
            try:
                call()
                assert not any(isinstance(each, PreTrainedModel) for each in _collected())
            finally:
                gc.enable()


def _collected() -> list[Any]:
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        return list(gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
