"""PEFT's RoAd checkpoints in and out, with PEFT itself as the oracle."""

import copy
import json
import os
import time
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel, PreTrainedModel

from roadint import RoadError, RoadIntervention, RoadModel
from roadint.interop.peft import CONFIG, TENSORS, base_of, export, load
from roadint.interop.peft.files import NOTES
from tests.helpers import IDS, VARIANTS, build, encoder, randomised, with_adapters


def save_road(model: PreTrainedModel, folder: Path, **config: Any) -> torch.Tensor:
    """Save a PEFT RoAd with random values; returns its logits."""
    peft_model = peft.get_peft_model(copy.deepcopy(model), peft.RoadConfig(**config)).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "road_theta" in name or "modules_to_save" in name:
                parameter.normal_(0, 0.5)
            elif "road_alpha" in name:
                parameter.uniform_(0.7, 1.3)
    peft_model.save_pretrained(folder)
    return peft_model(input_ids=IDS).logits


@pytest.mark.parametrize("group", [2, 8, 64])
@pytest.mark.parametrize("variant", VARIANTS)
def test_reads_every_variant_and_group(variant: Any, group: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 128,
    }
    model = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
    expected = save_road(
        model,
        tmp_path / "in",
        variant=variant,
        group_size=group,
        target_modules=["q_proj", "up_proj"],
    )
    road = RoadModel(model)
    adapter = load(road, tmp_path / "in", "math")
    logits = road(input_ids=IDS, compose="math").logits
    torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-5)
    # And back: the same numbers, bit for bit, and PEFT's own logits of them.
    export(road, tmp_path / "out")
    again = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "out").eval()
    assert torch.equal(again(input_ids=IDS).logits, expected)
    assert adapter.groups == (group,) * len(adapter.layout.paths)


@pytest.mark.parametrize("variant", VARIANTS)
def test_writes_what_peft_reads(variant: Any, tmp_path: Path) -> None:
    """A subspace and all linear layers, on a model with biases; the inference engine's logits are PEFT's."""
    model = build("qwen3")
    road = with_adapters(model, "a", variant=variant, subspace="[0, d/2)")
    size = export(road, tmp_path)
    assert size == sum(path.stat().st_size for path in tmp_path.iterdir())
    peft_model = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path).eval()
    torch.testing.assert_close(
        road(input_ids=IDS, compose="a").logits,
        peft_model(input_ids=IDS).logits,
        rtol=1e-6,
        atol=1e-5,
    )


def test_name_and_template_come_back(tmp_path: Path) -> None:
    """What PEFT has no place for; a model that has a template of its own keeps it."""
    model = build("qwen3")
    road = with_adapters(model, "math")
    road.template = "alpaca"
    export(road, tmp_path / "out")
    peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "out")  # reads past it
    fresh = RoadModel(model)
    assert load(fresh, tmp_path / "out").name == "math"
    assert fresh.template == "alpaca"
    other = with_adapters(model, "a")
    assert load(other, tmp_path / "out", "b").name == "b"
    assert other.template == "plain"
    with pytest.raises(RoadError, match="plain word"):
        load(RoadModel(model), tmp_path / "out", "")
    (tmp_path / "out" / NOTES).write_text('{"name": "none", "template": "plain"}')
    with pytest.raises(RoadError, match="reserved"):
        load(RoadModel(model), tmp_path / "out")
    (tmp_path / "out" / NOTES).write_text('{"name": "a", "template": "alpacca"}')
    with pytest.raises(RoadError, match="alpacca"):
        load(RoadModel(model), tmp_path / "out")
    (tmp_path / "out" / NOTES).unlink()
    plain = RoadModel(model)
    assert (load(plain, tmp_path / "out").name, plain.template) == ("road", "plain")


def test_modules_to_save_are_heads(tmp_path: Path) -> None:
    bert = encoder()
    config = {
        "task_type": "SEQ_CLS",
        "variant": "road_1",
        "group_size": 2,
        "target_modules": ["query", "dense"],
    }
    expected = save_road(bert, tmp_path / "in", **config)
    road = RoadModel(bert)
    adapter = load(road, tmp_path / "in", "glue")
    assert adapter.head_paths == ("classifier",)
    logits = road(input_ids=IDS, compose=["glue", None, "glue", None]).logits
    torch.testing.assert_close(logits[::2], expected[::2], rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(logits[1::2], bert(input_ids=IDS).logits[1::2], rtol=1e-6, atol=1e-6)
    export(road, tmp_path / "out")
    again = peft.PeftModel.from_pretrained(copy.deepcopy(bert), tmp_path / "out").eval()
    assert torch.equal(again(input_ids=IDS).logits, expected)


def test_refuses_what_peft_has_no_form_for(tmp_path: Path) -> None:
    model = build("llama")
    road = RoadModel(model, RoadIntervention(layer=1, subspaces={"german": "[0, d/2)"}))
    randomised(road.add_adapter("lora", lora_rank=2, targets="q_proj"))
    randomised(road.add_adapter("halves", pairing="half", targets=["q_proj", "k_proj"]))
    randomised(road.add_adapter("embedded", targets="embed_tokens"))
    for name, message in {
        "german": "no adapter 'german'",
        "lora": "LoRA beside",
        "halves": "pairs dims at distances",
        "embedded": "embed_tokens is a Embedding",
        None: "3 adapters to choose from",
    }.items():
        with pytest.raises(RoadError, match=message):
            export(road, tmp_path / "out", name)
    gpt2 = with_adapters(build("gpt2"), "a")
    with pytest.raises(RoadError, match="is a Conv1D"):
        export(gpt2, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_refuses_what_is_damaged_or_something_else(tmp_path: Path) -> None:
    model = build("llama")
    road = RoadModel(model)
    save_road(model, tmp_path / "in", group_size=2, target_modules=["q_proj"])
    config = tmp_path / "in" / "adapter_config.json"
    whole = json.loads(config.read_text())
    config.write_text(json.dumps({**whole, "peft_type": "LORA"}))
    with pytest.raises(RoadError, match="PEFT LORA checkpoint: expected peft_type ROAD"):
        load(road, tmp_path / "in")
    config.write_text(json.dumps(whole))
    tensors = tmp_path / "in" / "adapter_model.safetensors"
    payload = tensors.read_bytes()
    tensors.write_bytes(payload[:-8])
    with pytest.raises(RoadError, match="damaged"):
        load(road, tmp_path / "in")
    tensors.write_bytes(payload)
    with pytest.raises(RoadError, match="no linear layer model.layers"):
        load(RoadModel(build("gpt2")), tmp_path / "in")
    with pytest.raises(RoadError, match="neither a folder nor"):
        load(road, tmp_path / "nothing here")
    assert not road.adapters


def test_names_of_modules_to_save_are_ends_of_paths(tmp_path: Path) -> None:
    """As PEFT takes them: "norm" is every "…layernorm" too."""
    model = build("llama")
    expected = save_road(
        model, tmp_path / "in", group_size=4, target_modules=["q_proj"], modules_to_save=["norm"]
    )
    road = RoadModel(model)
    adapter = load(road, tmp_path / "in", "a")
    assert len(adapter.head_paths) == 2 * 3 + 1
    torch.testing.assert_close(
        road(input_ids=IDS, compose="a").logits, expected, rtol=1e-6, atol=1e-5
    )
    export(road, tmp_path / "out")
    again = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "out").eval()
    assert torch.equal(again(input_ids=IDS).logits, expected)


def test_a_head_that_peft_would_take_for_others_is_not_exported(tmp_path: Path) -> None:
    model = LlamaModel(build("llama").config)
    road = with_adapters(model, "a", targets=["q_proj"], heads="norm")
    with pytest.raises(
        RoadError, match=r"would take the head of 'a' for layers.0.input_layernorm too"
    ):
        export(road, tmp_path / "out")


def test_heads_that_peft_adds_for_a_task_are_read(tmp_path: Path) -> None:
    bert = encoder()
    config = {
        "task_type": "SEQ_CLS",
        "variant": "road_1",
        "group_size": 2,
        "target_modules": ["query"],
    }
    save_road(bert, tmp_path, **config)
    file = tmp_path / CONFIG
    file.write_text(json.dumps({**json.loads(file.read_text()), "modules_to_save": None}))
    assert load(RoadModel(bert), tmp_path).head_paths == ("classifier",)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_road(build("llama"), tmp_path / "in", group_size=2, target_modules=["q_proj"])
    return tmp_path / "in"


NASTY: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    10**9,
    10**400,
    0.5,
    "",
    "x",
    "\x00",
    [],
    ["x"],
    [1],
    [None],
    {},
    {"a": 1},
    [[]],
]
FIELDS = [
    "peft_type",
    "variant",
    "group_size",
    "target_modules",
    "modules_to_save",
    "task_type",
    "base_model_name_or_path",
]


@pytest.mark.parametrize(
    "key", [*FIELDS, "revision", "init_weights", "exclude_modules", "layers_to_transform"]
)
def test_changed_settings_are_refused_or_harmless(checkpoint: Path, key: str) -> None:
    model, file = build("llama"), checkpoint / CONFIG
    whole = json.loads(file.read_text())
    for value in NASTY:
        file.write_text(json.dumps({**whole, key: value}))
        road = RoadModel(model)
        try:
            adapter = load(road, checkpoint)
        except RoadError:
            assert not road.adapters
            continue
        assert adapter.groups == (2, 2, 2)
        assert len(adapter.layout.paths) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_size": None}, "group_size is None"),
        ({"group_size": "x"}, "group_size is 'x'"),
        ({"group_size": 0}, "group_size is 0: expected an integer from 2"),
        ({"group_size": 3}, "expected an even number"),
        ({"group_size": 6}, "does not fit width"),
        ({"variant": None}, "variant is None: expected one of 'road_1'"),
        (
            {"target_modules": ["k_proj"]},
            "self_attn.k_proj is a layer of the adapter in PEFT or in the checkpoint alone",
        ),
        ({"target_modules": ["q_proj", "k_proj"]}, "has no values for it"),
        ({"target_modules": ["layers.0.self_attn.q_proj"]}, "does not name it in target_modules"),
        ({"modules_to_save": ["norm"]}, "is missing or of another shape"),
        (
            {"layers_to_transform": [0]},
            "'layers_to_transform': .* no setting of RoAd that roadint knows",
        ),
        ({"rank_pattern": {"q_proj": 4}}, "no setting of RoAd"),
    ],
)
def test_settings_that_do_not_fit_are_named(
    checkpoint: Path, changes: dict[str, Any], message: str
) -> None:
    file = checkpoint / CONFIG
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(RoadError, match=message):
        load(RoadModel(build("llama")), checkpoint)


def test_settings_of_a_later_peft_that_say_nothing_are_passed_over(checkpoint: Path) -> None:
    file = checkpoint / CONFIG
    file.write_text(
        json.dumps({**json.loads(file.read_text()), "exclude_modules": None, "later": []})
    )
    load(RoadModel(build("llama")), checkpoint)


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"5",
        b"{",
        b"[" * 100_000,
        b'{"peft_type": 5}',
        b'{"a": 1, "a": 2}',
        b'{"a": ' + b"1" * 5000 + b"}",
    ],
)
def test_configs_that_are_none_are_refused(checkpoint: Path, content: bytes) -> None:
    (checkpoint / CONFIG).write_bytes(content)
    with pytest.raises(RoadError):
        load(RoadModel(build("llama")), checkpoint)
    with pytest.raises(RoadError):
        base_of(checkpoint)


FIRST = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({f"{FIRST}.road_theta": torch.full((16,), 1e300, dtype=torch.float64)}, "not finite"),
        ({f"{FIRST}.road_theta": torch.full((16,), float("nan"))}, "not finite"),
        ({f"{FIRST}.road_theta": torch.zeros(16, dtype=torch.int64)}, "is I64: expected one of"),
        ({f"{FIRST}.road_theta": torch.zeros(16).to(torch.float8_e4m3fn)}, "is F8_E4M3"),
        ({f"{FIRST}.road_theta": torch.zeros(4, 4)}, r"is \(4, 4\): expected 16 numbers"),
        ({f"{FIRST}.road_alpha": None}, "road_alpha is missing"),
        ({FIRST.replace("q_proj", "k_proj") + ".road_alpha": torch.ones(8)}, "no place for"),
        ({"evil": torch.zeros(2)}, "holds 'evil'"),
        (
            {FIRST.removeprefix("base_model.model.") + ".road_theta": torch.zeros(16)},
            "holds tensors twice",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    checkpoint: Path, changes: dict[str, Any], message: str
) -> None:
    tensors = {**safetensors.torch.load_file(checkpoint / TENSORS), **changes}
    (checkpoint / TENSORS).write_bytes(
        safetensors.torch.save({key: value for key, value in tensors.items() if value is not None})
    )
    with pytest.raises(RoadError, match=message):
        load(RoadModel(build("llama")), checkpoint)


def test_a_huge_file_is_not_read(checkpoint: Path) -> None:
    os.truncate(checkpoint / TENSORS, 8 << 30)  # sparse
    start = time.perf_counter()
    with pytest.raises(RoadError, match="truncated or was altered"):
        load(RoadModel(build("llama")), checkpoint)
    assert time.perf_counter() - start < 2


def test_half_precision_is_read(checkpoint: Path) -> None:
    tensors = {
        key: value.bfloat16()
        for key, value in safetensors.torch.load_file(checkpoint / TENSORS).items()
    }
    safetensors.torch.save_file(tensors, checkpoint / TENSORS)
    adapter = load(RoadModel(build("llama")), checkpoint)
    assert torch.equal(
        adapter.of(FIRST.removeprefix("base_model.model."))[0],
        tensors[f"{FIRST}.road_theta"].float(),
    )


def test_another_revision_of_the_base_is_not_taken_for_the_newest(checkpoint: Path) -> None:
    file = checkpoint / CONFIG
    whole = {**json.loads(file.read_text()), "base_model_name_or_path": "a/b"}
    for revision, wanted in {None: "a/b", "main": "a/b"}.items():
        file.write_text(json.dumps({**whole, "revision": revision}))
        assert base_of(checkpoint) == wanted
    file.write_text(json.dumps({**whole, "revision": "v2"}))
    with pytest.raises(RoadError, match="for revision 'v2' of 'a/b'"):
        base_of(checkpoint)


def test_an_export_over_another_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build("llama")
    road = with_adapters(model, "a", targets=["q_proj"])
    export(road, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    randomised(road.adapters["a"], 7)
    real, calls = os.replace, []

    def replace(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 2:
            raise OSError("disk full")
        real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(RoadError, match="disk full"):
            export(road, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    export(road, tmp_path)
    assert load(RoadModel(model), tmp_path).theta.equal(road.adapters["a"].theta)
    other = with_adapters(model, "a", targets=["k_proj"])
    with pytest.raises(RoadError, match="holds another adapter"):
        export(other, tmp_path)
