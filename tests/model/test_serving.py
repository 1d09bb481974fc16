"""What a server is started with, and what is refused before any model is loaded."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from roadint import RoadError, RoadIntervention, RoadModel, SteeringIntervention
from roadint.checkpoint.reading import read
from roadint.data.prompts import prompt_ids
from roadint.model import pretrained
from roadint.model.serving import needs_of, plan_server
from tests import stub_vllm
from tests.helpers import LAYERS, build, resign, trained, with_adapters


@pytest.fixture(autouse=True)
def _stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub_vllm.install(tmp_path / "site", monkeypatch)

    def loads(*_: Any, **__: Any) -> Any:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", loads)


@pytest.fixture(scope="module")
def runs(base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of one model: two of hidden states, one of an adapter, one that is no rotation."""
    folder = tmp_path_factory.mktemp("runs")
    model, _ = pretrained.load(base)
    halves = {"a": "[0, d/2)", "b": "[d/2, d)"}
    for name, layer in (("first", 1), ("second", 2)):
        trained(model, RoadIntervention(layer=layer, subspaces=halves)).save_pretrained(
            folder / name
        )
    with_adapters(model, "style").save_pretrained(folder / "adapter")
    steering = SteeringIntervention(layer=0, subspaces={"s": "[0, d)"})
    RoadModel(model, steering).save_pretrained(folder / "steering")
    return folder


def test_a_plan_says_everything_that_a_checkpoint_does(runs: Path, base: str) -> None:
    first = str(runs / "first")
    plan = plan_server(
        first, {"x": str(runs / "second")}, folder=runs, layers=[0], further=["--seed", "1"]
    )
    assert list(plan.names) == ["a", "b", "a@x", "b@x"]
    settings = plan.settings
    assert (settings.model, settings.further) == (base, ["--seed", "1"])
    assert settings.roadint == {
        "checkpoints": {"": first, "x": str(runs / "second")},
        "layers": [0],
        "adapters": False,
        "folder": str(runs),
    }
    assert settings.defaults["served_model_name"] == [Path(base).name]
    assert "dtype" not in settings.defaults  # the checkpoint knows of none


def test_chats_have_the_tokens_of_the_training(runs: Path, base: str) -> None:
    plan, tokenizer = plan_server(str(runs / "first")), AutoTokenizer.from_pretrained(base)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "say it"}],
        chat_template=plan.settings.defaults["chat_template"],
        tokenize=False,
    )
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == prompt_ids(tokenizer, read(runs / "first").config["template"], "say it")
    assert plan.chats


def test_the_dtype_is_that_of_the_training(runs: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    trained(build("gemma3")).save_pretrained(saved)

    def remember(config: Any) -> None:
        config["base_model"] = read(runs / "first").config["base_model"]
        config["training"] = {"recipe": {"model": {"dtype": "bfloat16"}}}

    resign(saved, remember)
    assert plan_server(str(saved)).settings.defaults["dtype"] == "bfloat16"


def test_short_names_are_those_of_load(
    runs: Path, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "_hub_or_offline", lambda name: (base, "the test"))
    settings = plan_server(str(runs / "first"), model="smollm2-135m").settings
    assert settings.model == base
    assert settings.defaults["served_model_name"] == ["smollm2-135m"]


def test_what_can_t_be_served_is_refused(
    runs: Path, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere(*_: Any, **__: Any) -> Any:
        raise OSError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", nowhere)
    first = str(runs / "first")
    trained(build("llama")).save_pretrained(tmp_path / "foreign")
    trained(build("gemma3")).save_pretrained(tmp_path / "other")

    def classes(config: Any) -> None:
        config["base_model"] |= {"labels": 3, "id": base}

    trained(build("gemma3")).save_pretrained(tmp_path / "classes")
    resign(tmp_path / "classes", classes)
    (tmp_path / "empty").mkdir()
    for arguments, said in [
        ({"checkpoint": str(tmp_path / "empty")}, "is no roadint checkpoint"),
        ({"checkpoint": str(runs / "steering")}, "is no rotation"),
        ({"checkpoint": str(tmp_path / "classes")}, "predicts classes"),
        ({"added": {"x": str(tmp_path / "foreign")}}, "expected its own base model"),
        ({"added": {"a b": first}}, "label 'a b'"),
        ({"added": {"x": str(tmp_path / "nowhere")}}, "neither a folder nor"),
        ({"model": str(tmp_path / "empty")}, "can't be read"),
        ({"layers": [0, LAYERS]}, f"has {LAYERS}, from 0"),
    ]:
        with pytest.raises(RoadError, match=said):
            plan_server(**{"checkpoint": first, **arguments})  # type: ignore[arg-type]


def test_two_templates_need_a_word(runs: Path, tmp_path: Path) -> None:
    """As chats can have one form only."""
    model = build("gemma3")
    road = trained(model)
    road.template = "alpaca" if read(runs / "first").config["template"] == "plain" else "plain"
    road.save_pretrained(tmp_path / "other")
    added = {"x": str(tmp_path / "other")}
    with pytest.raises(RoadError, match="'x' was trained with template"):
        plan_server(str(runs / "first"), added)
    for further in (["--chat-template", "{}"], ["--chat_template={}"]):
        plan = plan_server(str(runs / "first"), added, further=further)
        assert "chat_template" not in plan.settings.defaults


def test_what_a_folders_checkpoints_need(runs: Path, tmp_path: Path) -> None:
    """Those of the same model; others, and what is none, don't count."""
    assert needs_of(runs, str(runs / "first")) == ([0, 1, 2], True)
    assert needs_of(tmp_path / "nowhere", str(runs / "first")) == ([], False)
    (tmp_path / "broken").mkdir()
    for name in ("road.json", "road.safetensors"):
        (tmp_path / "broken" / name).write_text("{")
    assert needs_of(tmp_path, str(runs / "first")) == ([], False)
