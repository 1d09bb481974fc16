"""The rules of the design, on every architecture: a row's result depends on nothing but the row."""

import threading
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel, TextIteratorStreamer

import roadint
from roadint import RoadError, RoadIntervention, RoadModel
from roadint.architecture.properties import cache_name
from tests.helpers import IDS, VOCABULARY, WIDTH, build, own, padded, prompts, trained

COMPOSE = [None, "a", "b", "a + b", "0.5*a - b"]


POSITIONS = [
    ("last", "prompt"),
    ("last(2)", "prompt"),
    ("first(2)", "prompt"),
    ("all", "prompt"),
    ("at(0, 2)", "prompt"),
]


@pytest.mark.parametrize(("position", "phase"), POSITIONS)
def test_forward_equals_a_hand_written_hook(
    model: PreTrainedModel, position: str, phase: str
) -> None:
    road = trained(
        model,
        RoadIntervention(
            layer=1, position=position, phase=phase, subspaces={"a": "[0, d/2)", "b": "[d/2, d)"}
        ),
    )
    ids = torch.stack(prompts([7, 7]))
    chosen = {
        "last": [6],
        "last(2)": [5, 6],
        "first(2)": [0, 1],
        "all": list(range(7)),
        "at(0, 2)": [0, 2],
    }[position]
    dense = torch.stack(
        [
            road.interventions[0].rotation(road.interventions[0].strengths([c]))(torch.eye(WIDTH))
            for c in road.compositions()[1:3]
        ]
    )

    def hook(module: Any, args: Any, output: Any) -> Any:
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        for row in range(2):  # h @ (rows of R e_i) is R h
            hidden[row, chosen] = hidden[row, chosen] @ dense[row]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = roadint.architecture.layers.find_layers(model)[1][1].register_forward_hook(hook)
    expected = model(input_ids=ids).logits
    handle.remove()
    torch.testing.assert_close(
        road(input_ids=ids, compose=["a", "b"]).logits, expected, rtol=1e-5, atol=1e-5
    )
    assert not torch.allclose(expected, model(input_ids=ids).logits, atol=1e-3)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("position", "phase"), [*POSITIONS[:3], ("all", "both")])
def test_a_row_is_the_same_alone_and_in_any_batch(
    model: PreTrainedModel, side: str, position: str, phase: str
) -> None:
    road = trained(
        model,
        RoadIntervention(
            layer=1, position=position, phase=phase, subspaces={"a": "[0, d/2)", "b": "[d/2, d)"}
        ),
    )
    rows = prompts([5, 9, 3, 7, 8])
    with torch.no_grad():
        batch = road(**padded(rows, side), compose=COMPOSE).logits
        for index, (row, compose) in enumerate(zip(rows, COMPOSE, strict=True)):
            alone = road(input_ids=row[None], compose=compose).logits[0]
            torch.testing.assert_close(own(batch[index], row, side), alone, rtol=1e-4, atol=1e-4)


def test_none_is_the_base_model_bit_for_bit(model: PreTrainedModel) -> None:
    road = trained(model)
    inputs = padded(prompts([5, 9]), "right")
    expected = model(**inputs)
    output = road(**inputs, compose=None)
    assert type(output) is type(expected)
    assert torch.equal(output.logits, expected.logits)
    mixed = road(**inputs, compose=[None, "a"]).logits
    assert torch.equal(mixed[0, :5], expected.logits[0, :5])  # the rest of the row is padding
    assert not torch.equal(mixed[1], expected.logits[1])


def test_blocks_outside_the_composition_are_untouched(model: PreTrainedModel) -> None:
    road = trained(model)
    ids = torch.stack(prompts([6]))
    next_layer = roadint.architecture.layers.find_layers(model)[1][2]
    seen: list[Tensor] = []
    with torch.no_grad():
        for compose in (None, "a"):
            # The next layer's input is what came out of the edited one.
            look = next_layer.register_forward_pre_hook(
                lambda m, args, kwargs: seen.append((*args, *kwargs.values())[0]), with_kwargs=True
            )
            road(input_ids=ids, compose=compose)
            look.remove()
    base, edited = seen
    assert torch.equal(base[..., WIDTH // 2 :], edited[..., WIDTH // 2 :])
    assert torch.equal(base[:, :-1], edited[:, :-1])
    assert bool((base[:, -1, : WIDTH // 2] != edited[:, -1, : WIDTH // 2]).all())


def test_gradient_reaches_the_rows_own_blocks_only(model: PreTrainedModel) -> None:
    road = trained(model)
    road(
        input_ids=torch.stack(prompts([6, 6])), compose=["a", None]
    ).logits.square().mean().backward()
    theta = road.interventions[0].theta
    half = WIDTH // 4
    assert bool((theta.grad[:half] != 0).all())
    assert torch.equal(theta.grad[half:], torch.zeros(half))


@pytest.mark.parametrize("phase", ["prompt", "generated", "both"])
@pytest.mark.parametrize("position", ["last", "first(2)", "all"])
def test_generation_is_the_same_with_and_without_cache_and_in_chunks(
    model: PreTrainedModel, position: str, phase: str
) -> None:
    road = trained(
        model,
        RoadIntervention(
            layer=1, position=position, phase=phase, subspaces={"a": "[0, d/2)", "b": "[d/2, d)"}
        ),
    )
    inputs = {
        **padded(prompts([5, 9, 3, 7, 8]), "left"),
        "compose": COMPOSE,
        "max_new_tokens": 8,
        "do_sample": False,
    }
    cached = road.generate(**inputs)
    assert torch.equal(cached, road.generate(**inputs, use_cache=False))
    assert torch.equal(cached, road.generate(**inputs, prefill_chunk_size=4, use_cache=True))
    for index, row in enumerate(prompts([5, 9, 3, 7, 8])):
        alone = road.generate(
            input_ids=row[None], compose=COMPOSE[index], max_new_tokens=8, do_sample=False
        )[0, len(row) :]
        ended = alone.tolist() + [0] * 8
        assert cached[index, 9:].tolist() == ended[:8]


def test_forward_with_prompt_length_equals_the_cached_continuation(model: PreTrainedModel) -> None:
    """Teacher forcing in one pass, and token by token with a cache: the same logits for every phase."""
    for phase in ("prompt", "generated", "both"):
        road = trained(
            model,
            RoadIntervention(
                layer=1, position="all", phase=phase, subspaces={"a": "[0, d/2)", "b": "[d/2, d)"}
            ),
        )
        ids = torch.stack(prompts([10, 10]))
        with torch.no_grad():
            whole = road(
                input_ids=ids, compose=["a", "b"], prompt_length=torch.tensor([6, 6])
            ).logits
            generated = road.generate(
                input_ids=ids[:, :6],
                compose=["a", "b"],
                max_new_tokens=1,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        torch.testing.assert_close(whole[:, 5], generated.logits[0], rtol=1e-4, atol=1e-4)


def test_forward_continues_a_cache(model: PreTrainedModel) -> None:
    road = trained(model)
    ids = torch.stack(prompts([8, 8]))
    with torch.no_grad():
        first = model(input_ids=ids[:, :5], use_cache=True)
        output = road(
            input_ids=ids[:, 5:],
            **{cache_name(model): first[cache_name(model)]},
            compose=["a", "b"],
        )
        torch.testing.assert_close(
            output.logits[:, -1],
            road(input_ids=ids, compose=["a", "b"]).logits[:, -1],
            rtol=1e-4,
            atol=1e-4,
        )


def test_beams_and_returned_sequences_keep_their_rows_composition(model: PreTrainedModel) -> None:
    road = trained(model)
    inputs = padded(prompts([5, 9, 6]), "left")
    settings = {"max_new_tokens": 5, "do_sample": False, "num_beams": 3, "num_return_sequences": 2}
    mixed = road.generate(**inputs, compose=["a", None, "a + b"], **settings)
    assert mixed.shape[0] == 6
    for index, compose in enumerate(["a", None, "a + b"]):
        alone = road.generate(**inputs, compose=compose, **settings)
        columns = min(mixed.shape[1], alone.shape[1])
        assert torch.equal(
            mixed[2 * index : 2 * index + 2, :columns], alone[2 * index : 2 * index + 2, :columns]
        )
    torch.manual_seed(3)
    sampled = road.generate(
        **inputs, compose="a", max_new_tokens=3, do_sample=True, num_return_sequences=4
    )
    assert sampled.shape[0] == 12


def test_threads_do_not_see_each_other(llama: PreTrainedModel) -> None:
    road = trained(llama)
    ids = torch.stack(prompts([6, 6]))
    expected = {
        compose: road(input_ids=ids, compose=compose).logits.detach() for compose in COMPOSE
    }
    wrong: list[str] = []

    def work(compose: str | None) -> None:
        for _ in range(30):
            with torch.no_grad():
                if not torch.equal(road(input_ids=ids, compose=compose).logits, expected[compose]):
                    wrong.append(str(compose))
                if not torch.equal(llama(input_ids=ids).logits, expected[None]):
                    wrong.append("bare model")

    threads = [threading.Thread(target=work, args=(compose,)) for compose in COMPOSE]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert hooks_of(llama) == []


def hooks_of(model: PreTrainedModel) -> list[Any]:
    return [
        hook
        for module in model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ]


def test_the_model_is_left_clean_also_after_an_exception(model: PreTrainedModel) -> None:
    road = trained(model)
    calls: list[int] = []
    other = roadint.architecture.layers.find_layers(model)[1][1].register_forward_hook(
        lambda *_: calls.append(1)
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    asking = [parameter.requires_grad for parameter in model.parameters()]
    road(input_ids=torch.stack(prompts([4])), compose="a")
    with pytest.raises(IndexError):
        road(input_ids=torch.full((1, 4), VOCABULARY + 5), compose="a")
    breaking = roadint.architecture.layers.find_layers(model)[1][2].register_forward_hook(_explode)
    with pytest.raises(RuntimeError, match="boom"):
        road.generate(input_ids=torch.stack(prompts([4])), compose="a", max_new_tokens=2)
    breaking.remove()
    assert len(calls) >= 2
    assert len(hooks_of(model)) == 1  # the other library's
    other.remove()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == asking
    road.train()
    assert not model.training


def _explode(*_: Any) -> None:
    raise RuntimeError("boom")


def test_parameters_stay_float32_and_the_output_keeps_the_models_dtype() -> None:
    model = build("llama").bfloat16()
    road = trained(model)
    theta = road.interventions[0].theta.detach().clone()
    road.to(torch.float16).bfloat16()
    assert road.interventions[0].theta.dtype == torch.float32
    assert torch.equal(road.interventions[0].theta, theta)
    assert road(input_ids=torch.stack(prompts([4])), compose="a").logits.dtype == torch.bfloat16


def test_several_interventions_and_components(model: PreTrainedModel) -> None:
    parts = {"a": "[0, d/2)", "b": "[d/2, d)"}
    road = trained(
        model,
        RoadIntervention(layer=0, component="mlp_output", variant="road_4", subspaces=parts),
        RoadIntervention(
            layer=1,
            component="attention_output",
            variant="road_2",
            subspaces={"a": "[0, 4)"},
            position="all",
        ),
        RoadIntervention(layer=2, subspaces={"c": "[0, d)"}, pairing="half"),
    )
    assert road.names == ["a", "b", "c"]
    assert road.trainable_count == 4 * WIDTH + 2 * 4 + WIDTH
    rows, compose = prompts([5, 9, 3, 6]), ["a", "b", "c", "all"]
    with torch.no_grad():
        batch = road(**padded(rows, "left"), compose=compose).logits
        base = model(input_ids=rows[0][None]).logits[0]
        for index, row in enumerate(rows):
            alone = road(input_ids=row[None], compose=compose[index]).logits[0]
            torch.testing.assert_close(own(batch[index], row, "left"), alone, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(own(batch[0], rows[0], "left")[-1], base[-1], atol=1e-3)


@pytest.mark.parametrize("compose", ["a", None])
def test_scores_of_selected_tokens_equal_those_from_all_logits(
    model: PreTrainedModel, compose: str | None
) -> None:
    road = trained(model.requires_grad_(False))
    inputs = padded(prompts([5, 9]), "left")
    rows, columns, labels = (
        torch.tensor([0, 1, 1]),
        torch.tensor([8, 3, 7]),
        torch.tensor([7, 5, 100]),
    )
    results = []
    for _ in range(2):
        road.zero_grad()
        if not results:
            nll = torch.nn.functional.cross_entropy(
                road(**inputs, compose=compose).logits[rows, columns], labels, reduction="none"
            )
        else:
            nll = road.token_nll(torch.stack([rows, columns]), labels, **inputs, compose=compose)
        if compose:
            (nll * torch.tensor([1.0, 2.0, 0.5])).sum().backward()
        results.append([nll.detach(), road.interventions[0].theta.grad])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    assert hooks_of(model) == []
    assert not any("forward" in vars(module) for module in model.modules())


def test_pieces_of_logits_run_the_head_alone(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Embeddings and masks are computed once, however many pieces there are; reading a mask would wait for a GPU."""

    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.count += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    road, ran = trained(model.requires_grad_(False)), []
    model.get_input_embeddings().register_forward_hook(lambda *_: ran.append("embeddings"))
    model.get_output_embeddings().register_forward_hook(lambda *_: ran.append("head"))
    inputs = padded(prompts([5, 9]), "right")
    where = torch.tensor([[0, 0, 1, 1, 1], [1, 4, 2, 3, 8]])
    reads = {}
    for piece, pieces in ((1 << 20, 1), (1, 5)):
        monkeypatch.setattr("roadint.engines.transformers.scoring._LOGITS", piece)
        ran.clear()
        with Reads() as mode:
            road.token_nll(where, torch.tensor([7, 5, 100, 3, 9]), **inputs)
        reads[pieces] = mode.count
        assert ran == ["embeddings", *["head"] * pieces]
    assert reads[1] == reads[5]


def test_pieces_of_logits_change_nothing_and_a_soft_cap_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build("gemma3").requires_grad_(False)
    model.config.final_logit_softcapping = 2.0
    road = trained(model)
    inputs = padded(prompts([5, 9]), "right")
    where, labels = (
        torch.tensor([[0, 0, 1, 1, 1], [1, 4, 2, 3, 8]]),
        torch.tensor([7, 5, 100, 3, 9]),
    )
    expected = torch.nn.functional.cross_entropy(
        road(**inputs).logits[where[0], where[1]], labels, reduction="none"
    )
    assert float(expected.max()) < 9  # capped: log(128) + 2 · 2
    for piece in (1, 2 * model.config.vocab_size, 1 << 20):
        monkeypatch.setattr("roadint.engines.transformers.scoring._LOGITS", piece)
        monkeypatch.setattr("roadint.engines.transformers.scoring._FLOATS", piece)
        torch.testing.assert_close(
            road.token_nll(where, labels, **inputs), expected, rtol=1e-5, atol=1e-5
        )


def test_a_head_that_trains_gets_its_gradient_from_scores(llama: PreTrainedModel) -> None:
    road = trained(llama.requires_grad_(False))
    llama.lm_head.weight.requires_grad_(True)
    road.token_nll(
        torch.tensor([[0], [2]]), torch.tensor([7]), **padded(prompts([5]), "right")
    ).sum().backward()
    assert bool(llama.lm_head.weight.grad.any())


def test_generate_answers_texts(llama: PreTrainedModel, tokenizer: Any) -> None:
    road = trained(llama)
    road.template = "alpaca"
    texts = road.answer(
        tokenizer,
        ["Why?", "A longer question, padded less.", "Why?"],
        compose=["a", "b", None],
        max_new_tokens=6,
    )
    assert texts[0] == road.answer(tokenizer, ["Why?"], compose="a", max_new_tokens=6)[0]
    assert texts[2] == road.answer(tokenizer, "Why?", compose=None, max_new_tokens=6)[0]
    assert len(road.answer(tokenizer, "Why?", compose=[None, "a"], max_new_tokens=2)) == 2
    assert (
        len(
            road.answer(
                tokenizer,
                "Why?",
                compose="a",
                max_new_tokens=2,
                num_beams=2,
                num_return_sequences=2,
            )
        )
        == 2
    )


def test_penalties_do_not_depend_on_padding(llama: PreTrainedModel, tokenizer: Any) -> None:
    """A padding token that is also a word would be penalised in padded rows only."""
    own_tokenizer = deepcopy(tokenizer)
    own_tokenizer.pad_token = "e"
    road = trained(llama)
    questions = ["abc", "a much longer prompt than that"]
    together = road.answer(
        own_tokenizer, questions, compose="a", max_new_tokens=20, repetition_penalty=3.0
    )
    assert (
        together[0]
        == road.answer(
            own_tokenizer, questions[:1], compose="a", max_new_tokens=20, repetition_penalty=3.0
        )[0]
    )


def test_describe_marks_the_edited_tokens(
    llama: PreTrainedModel, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    road = trained(
        llama,
        RoadIntervention(layer=1, position="last(2)"),
        RoadIntervention(layer=2, position="first(1)"),
    )
    text = road.describe(tokenizer, "abc")
    assert capsys.readouterr().out == ""
    assert "»<bos>«[layer 2]|a|»b«[layer 1]|»c«[layer 1]" in text
    assert "4 tokens, 3 edited" in text


@pytest.mark.parametrize(
    ("intervention", "message"),
    [
        ({"layer": 3}, r"layer 3 is outside the model: expected 0 to 2"),
        ({"component": "mlp_outpt"}, "unknown component 'mlp_outpt'.*did you mean 'mlp_output'"),
        ({"embed_dim": 64}, "has width 64, the model has 32"),
        ({"subspace": "[0, 3)"}, "cuts the block"),
    ],
)
def test_what_does_not_fit_is_named(
    llama: PreTrainedModel, intervention: dict[str, Any], message: str
) -> None:
    with pytest.raises(RoadError, match=message):
        RoadModel(llama, RoadIntervention(**{"layer": 1, **intervention}))


def test_bad_calls_are_named(llama: PreTrainedModel) -> None:
    road = trained(llama)
    ids = torch.stack(prompts([4, 4]))
    with pytest.raises(RoadError, match="unknown subspace 'c'"):
        road(input_ids=ids, compose="c")
    with pytest.raises(RoadError, match="3 compositions for 2 rows"):
        road(input_ids=ids, compose=["a"] * 3)
    with pytest.raises(RoadError, match="no input given"):
        road(compose="a")
    with pytest.raises(RoadError, match=r"attention_mask of shape \(1, 4\) for 2 rows"):
        road(input_ids=ids, attention_mask=torch.ones(1, 4), compose="a")
    far = trained(llama, RoadIntervention(layer=1, position="at(6)"))
    with pytest.raises(RoadError, match=r"at\(6\) is outside a prompt of 4 tokens"):
        far(input_ids=ids)
    with pytest.raises(RoadError, match="capacity=0: expected how many"):
        RoadModel(llama, capacity=0)
    with pytest.raises(RoadError, match="no transformers model"):
        RoadModel(torch.nn.Linear(2, 2), RoadIntervention())
    assert hooks_of(llama) == []


def test_what_generate_is_told_twice_is_taken(llama: PreTrainedModel) -> None:
    """An edited generation runs uncompiled; a caller may say so as well."""
    road = trained(llama)
    for compose in (None, "a"):
        plain = road.generate(IDS, compose=compose, max_new_tokens=3, do_sample=False)
        said = road.generate(
            IDS, compose=compose, max_new_tokens=3, do_sample=False, disable_compile=True
        )
        assert torch.equal(said, plain)


def test_a_limit_of_time_leaves_the_length(llama: PreTrainedModel, tokenizer: Any) -> None:
    """transformers' own default would end an answer after 20 tokens."""
    road = trained(llama)
    road.template = "plain"
    plain = road.answer(tokenizer, "Why?", compose="a")
    assert road.answer(tokenizer, "Why?", compose="a", max_time=600) == plain
    assert len(tokenizer(plain[0])["input_ids"]) > 25


def test_answers_stream(llama: PreTrainedModel, tokenizer: Any) -> None:
    road = trained(llama)
    streamer = TextIteratorStreamer(
        tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=60
    )
    arguments = {"compose": "a + b", "max_new_tokens": 8, "streamer": streamer}
    thread = threading.Thread(target=road.answer, args=(tokenizer, "Why?"), kwargs=arguments)
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert len(pieces) > 2
    assert (
        "".join(pieces).strip()
        == road.answer(tokenizer, "Why?", compose="a + b", max_new_tokens=8)[0]
    )


def test_the_edit_is_made_once_whatever_the_length_and_the_number_of_compositions(
    llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    road, edited = trained(llama), []
    edit = RoadIntervention.edit
    monkeypatch.setattr(
        RoadIntervention,
        "edit",
        lambda self, h, rotation, source=None: edited.append(h.shape) or edit(self, h, rotation),
    )
    inputs = padded(prompts([5, 9, 7, 3]), "left")
    road.generate(
        **inputs, compose=["a", "0.5*a - b", None, "b"], max_new_tokens=12, do_sample=False
    )
    assert edited == [(3, WIDTH)]  # the last prompt token of three rows, at the prefill


def test_the_state_of_a_module_around_it_is_without_the_model(llama: PreTrainedModel) -> None:
    road = trained(llama)
    around = torch.nn.ModuleDict({"road": road, "head": torch.nn.Linear(2, 2)})
    state = {name: value.clone() for name, value in around.state_dict().items()}
    assert sorted(state) == sorted(
        [*(f"road.{name}" for name in road.state_dict()), "head.weight", "head.bias"]
    )
    with torch.no_grad():
        road.interventions[0].theta.zero_()
    around.load_state_dict(state)
    assert bool(road.interventions[0].theta.any())
    del state["road.interventions.0.theta"]
    with pytest.raises(RuntimeError, match="road.interventions.0.theta"):
        around.load_state_dict(state)


def test_one_label_is_loaded_once(llama: PreTrainedModel, tmp_path: Path) -> None:
    """Also where two threads ask for it at the same moment."""
    trained(llama).save_pretrained(tmp_path)
    road, both = RoadModel(llama), threading.Barrier(2)
    told: list[str] = []

    def load() -> None:
        both.wait()
        try:
            road.add_checkpoint(tmp_path, "x")
            told.append("loaded")
        except RoadError as error:
            told.append(str(error))

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(road.interventions) == 1
    assert [text.startswith("label 'x' is taken") for text in sorted(told)] == [True, False]


def test_the_first_checkpoint_says_the_template(llama: PreTrainedModel, tmp_path: Path) -> None:
    saved = RoadModel(llama)
    saved.add_adapter("math")
    saved.template = "alpaca"
    saved.save_pretrained(tmp_path)
    road = RoadModel(llama)
    road.load_adapter(tmp_path)
    assert road.template == "alpaca"
    other = RoadModel(llama)
    other.add_checkpoint(tmp_path, "a")
    assert other.template == "alpaca"
    mine = RoadModel(llama)
    mine.template = "line"
    with pytest.raises(RoadError, match="template 'alpaca', this one with 'line'"):
        mine.load_adapter(tmp_path)
    saved.template = "plain"  # as after a training that says none
    saved.save_pretrained(tmp_path / "unsaid")
    mine.load_adapter(tmp_path / "unsaid")
    assert mine.template == "line"
    plain, message = trained(llama), "template 'alpaca', this one with 'plain'"
    with pytest.raises(RoadError, match=message):
        plain.load_adapter(tmp_path)
    with pytest.raises(RoadError, match=message):
        plain.add_checkpoint(tmp_path, "c")
    assert plain.names == ["a", "b"]
    assert plain.template == "plain"
