"""Checkpoints: complete, whole or not at all, refused when damaged; the hub's side with a stand-in for its API."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from transformers import PreTrainedModel

from roadint import RoadError, RoadIntervention, RoadModel
from roadint.checkpoint.format import CONFIG, TENSORS
from roadint.checkpoint.reading import read, size_of
from roadint.grammar.subspace import Subspace
from tests.helpers import build, counted, resign, trained


@pytest.fixture
def saved(tmp_path: Path, llama: PreTrainedModel) -> Path:
    trained(llama).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_round_trip_keeps_everything(tmp_path: Path, model: PreTrainedModel) -> None:
    parts = {"a": "[0, 4) | [8, 12)", "b": "[12, d)"}
    road = trained(
        model,
        RoadIntervention(
            layer=1,
            position="last(3)",
            phase="both",
            variant="road_4",
            subspaces=parts,
            basis="random",
            basis_seed=5,
        ),
        RoadIntervention(layer=2, component="mlp_output", position="at(0, 2)", pairing="half"),
    )
    road.template, road.training_summary = "alpaca", {"steps": 3}
    road.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([CONFIG, TENSORS])
    assert size_of(tmp_path) == sum(path.stat().st_size for path in tmp_path.iterdir())
    again = RoadModel.from_pretrained(model, tmp_path)
    ids = torch.randint(3, 100, (3, 7))
    compose = ["a", "b + road", "all"]
    assert torch.equal(
        again(input_ids=ids, compose=compose).logits, road(input_ids=ids, compose=compose).logits
    )
    assert (again.template, again.training_summary, again.names) == (
        "alpaca",
        {"steps": 3},
        ["a", "b", "road"],
    )
    assert [i.spec() for i in again.interventions] == [i.spec() for i in road.interventions]


def test_loads_with_no_other_knowledge(saved: Path) -> None:
    found = read(saved)
    (intervention,), config = found.interventions(), found.config
    assert intervention.theta.shape == (16,)
    assert config["base_model"] == {"id": "", "model_type": "llama", "width": 32, "layers": 3}
    assert config["dtype"] == "float32"
    assert set(config["versions"]) == {"roadint", "torch", "transformers"}


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda p: (p / TENSORS).write_bytes((p / TENSORS).read_bytes()[:-7]),
            "truncated or was altered",
        ),
        (
            lambda p: (p / TENSORS).write_bytes((p / TENSORS).read_bytes()[:-1] + b"\x01"),
            "truncated or was altered",
        ),
        (lambda p: (p / CONFIG).write_text((p / CONFIG).read_text()[:-40]), "truncated or no JSON"),
        (lambda p: edit(p / CONFIG, template="chat"), "was altered"),
        (
            lambda p: edit(p / CONFIG, format=3),
            "checkpoint format 3.*reads up to 2: update roadint",
        ),
        (lambda p: edit(p / CONFIG, format="x"), "format 'x'"),
        (lambda p: (p / CONFIG).write_text("[]"), "format None"),
        (lambda p: (p / TENSORS).unlink(), f"has no {TENSORS}"),
        (lambda p: (p / CONFIG).unlink(), f"has no {CONFIG}"),
    ],
)
def test_damage_is_refused(saved: Path, damage: Any, message: str) -> None:
    damage(saved)
    with pytest.raises(RoadError, match=message):
        read(saved).interventions()


def test_values_that_are_not_finite_are_refused(tmp_path: Path, llama: PreTrainedModel) -> None:
    road = trained(llama)
    with torch.no_grad():
        road.interventions[0].theta[3] = float("nan")
    road.save_pretrained(tmp_path)
    with pytest.raises(RoadError, match="theta of intervention 0 is .*finite: False"):
        read(tmp_path).interventions()


def test_another_model_is_refused(saved: Path) -> None:
    other = build("gpt2")
    with pytest.raises(
        RoadError, match="trained on llama .* of type 'llama', this one is of type 'gpt2'"
    ):
        RoadModel.from_pretrained(other, saved)  # the same width and depth
    wide = type(other)(type(other.config)(vocab_size=64, n_embd=48, n_layer=3, n_head=4))
    with pytest.raises(
        RoadError, match=r"trained on llama \(width 32, 3 layers\), this model has width 48"
    ):
        RoadModel.from_pretrained(wide, saved)
    found = read(saved)  # who knows better puts the values there himself, as the message says
    assert RoadModel(other, found.interventions()).names == ["a", "b"]


def test_a_checkpoint_that_does_not_say_its_model_type_loads(
    saved: Path, llama: PreTrainedModel
) -> None:
    resign(saved, lambda config: config["base_model"].pop("model_type"))
    assert RoadModel.from_pretrained(llama, saved).names == ["a", "b"]


@pytest.mark.parametrize(
    ("subspace", "text"),
    [
        ("[0, d/2)", "[0, d/2)"),
        ("  [0,\n d/4)  |   [d/2, d) ", "[0, d/4) | [d/2, d)"),
        ("blocks[1::2]", "blocks[1::2]"),
        (slice(0, 16), "[0, 16)"),
        (slice(8, None), "[8, d)"),
        (slice(-8, None), "[d - 8, d)"),
        ((0, 16), "[0, 16)"),
        (range(4, 16), "[4, 16)"),
        ([(0, 8), (12, 16)], "[0, 8) | [12, 16)"),
        ([(0, 8), slice(12, None)], "[0, 8) | [12, d)"),
        ([0, 1, 4, 5], "[0, 2) | [4, 6)"),
        (Subspace(((0, 4),)), "[0, 8)"),
    ],
)
def test_an_adapters_subspace_comes_back_in_every_form(
    tmp_path: Path, llama: PreTrainedModel, subspace: Any, text: str
) -> None:
    road = RoadModel(llama)
    adapter = road.add_adapter(
        "a", targets=["q_proj", "up_proj"], subspace=subspace
    )  # 32 and 48 wide
    road.save_pretrained(tmp_path)
    again = RoadModel.from_pretrained(llama, tmp_path).adapters["a"]
    assert again.held is not None
    assert adapter.held is not None
    assert torch.equal(again.held, adapter.held)
    assert again.spec()["subspace"] == adapter.spec()["subspace"] == text


def test_a_subspace_that_does_not_fit_a_target_is_refused_before_training(
    llama: PreTrainedModel,
) -> None:
    with pytest.raises(
        RoadError, match="boundary 40 in subspace .* is outside the width: expected 0 to 32"
    ):
        RoadModel(llama).add_adapter("a", targets=["q_proj", "up_proj"], subspace=slice(0, 40))


def test_what_is_told_of_the_training_is_made_json(tmp_path: Path, llama: PreTrainedModel) -> None:
    road = trained(llama)
    subspaces = {"a": slice(0, 16), "b": (16, 32)}
    road.training_summary = {
        "recipe": {
            "subspaces": subspaces,
            "dtype": torch.bfloat16,
            "out": Path("runs/a"),
            "layers": range(2),
            3: {"x"},
        },
        "loss": float("nan"),
        "lr": torch.tensor([0.5, 1.0]),
        "model": llama,
        "half": "\ud800",
    }
    road.save_pretrained(tmp_path)
    json.loads((tmp_path / CONFIG).read_text(), parse_constant=lambda name: pytest.fail(name))
    told = RoadModel.from_pretrained(llama, tmp_path).training_summary
    assert told["recipe"]["subspaces"] == {"a": "[0, 16)", "b": [16, 32]}
    assert told["recipe"] | {"subspaces": 0} == {
        "subspaces": 0,
        "dtype": "bfloat16",
        "out": "runs/a",
        "layers": [0, 1],
        "3": ["x"],
    }
    assert (told["loss"], told["lr"], told["half"]) == ("nan", [0.5, 1.0], "\\ud800")
    assert "Llama" in told["model"]


@pytest.mark.parametrize(
    ("recipe", "dtype"),
    [
        (None, "auto"),
        ("mine", "auto"),
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"dtype": torch.float16}, "float16"),
        ({"dtype": "nn"}, "auto"),
        ({"model": {"name": "tiny", "dtype": "bfloat16"}}, "bfloat16"),
        ({"model": "tiny", "dtype": "float16"}, "float16"),
    ],
)
def test_the_dtype_of_the_training_is_told(
    tmp_path: Path, llama: PreTrainedModel, recipe: Any, dtype: str
) -> None:
    road = trained(llama)
    road.training_summary = {"recipe": recipe}
    road.save_pretrained(tmp_path)
    assert read(tmp_path).dtype == dtype


@pytest.mark.parametrize("name", ["", " ", None, 5, "a\0b", "x" * 5000, "\ud800"])
def test_names_that_are_no_folder_are_refused(llama: PreTrainedModel, name: Any) -> None:
    with pytest.raises(RoadError) as caught:
        RoadModel.from_pretrained(llama, name)
    assert len(str(caught.value)) < 500


def test_a_file_is_no_checkpoint(saved: Path, llama: PreTrainedModel) -> None:
    with pytest.raises(RoadError, match="is a file: expected the folder that holds it"):
        RoadModel.from_pretrained(llama, saved / CONFIG)
    with pytest.raises(RoadError, match="can't be a folder to write to"):
        trained(llama).save_pretrained(saved / CONFIG)


def test_an_adapter_is_loaded_under_a_name_that_compositions_can_use(
    tmp_path: Path, llama: PreTrainedModel
) -> None:
    road = RoadModel(llama)
    road.add_adapter("a")
    road.save_pretrained(tmp_path)
    for name in ("no name", "", "all"):
        with pytest.raises(RoadError, match="subspace name"):
            road.load_adapter(tmp_path, name)
    assert list(road.adapters) == ["a"]
    assert road.load_adapter(tmp_path, "b").name == "b"


@pytest.mark.parametrize("at", range(9))
def test_killed_while_saving_the_old_or_the_new_one_loads(
    saved: Path, llama: PreTrainedModel, at: int
) -> None:
    road = trained(llama)
    old = road.interventions[0].theta.detach().clone()
    with torch.no_grad():
        road.interventions[0].theta.fill_(0.5)
    child = os.fork()
    if not child:
        counted(pytest.MonkeyPatch(), at, lambda: os._exit(9))
        road.save_pretrained(saved)
        os._exit(0)
    os.waitpid(child, 0)
    found = RoadModel.from_pretrained(llama, saved).interventions[0].theta
    assert torch.equal(found, old) or torch.equal(found, torch.full_like(found, 0.5))
    road.save_pretrained(saved)
    assert sorted(path.name for path in saved.iterdir()) == sorted([CONFIG, TENSORS])


def test_a_reader_beside_a_writer_sees_one_of_the_checkpoints(
    saved: Path, llama: PreTrainedModel
) -> None:
    road = trained(llama)
    done = threading.Event()

    def write() -> None:
        for number in range(40):
            with torch.no_grad():
                road.interventions[0].theta.fill_(number)
            road.save_pretrained(saved)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    found = []
    while not done.is_set():
        found.append(read(saved).tensors["0.theta"])
    writer.join()
    first = trained(llama).interventions[0].theta
    assert all(torch.equal(each, first) or len(each.unique()) == 1 for each in found)


def test_a_failed_write_leaves_the_old_checkpoint(
    saved: Path, llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def full(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("roadint.files.atomic.os.fsync", full)
    with pytest.raises(RoadError, match="disk full"):
        trained(llama, RoadIntervention(layer=0)).save_pretrained(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_what_is_neither_folder_nor_repository_is_named(
    llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: Any, **__: Any) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(
        RoadError,
        match=r"'someone/adapter' is neither a folder nor a reachable hub repository \(no connection\)",
    ):
        RoadModel.from_pretrained(llama, "someone/adapter")


def test_hub_round_trip(
    llama: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up through HfApi and down through snapshot_download, with a folder in the hub's place."""
    hub = tmp_path / "hub"

    class Api:
        def __init__(self, token: str | None = None) -> None:
            assert token == "secret"

        def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> None:
            assert private
            assert exist_ok
            assert repo_id == "me/adapter"

        def whoami(self) -> Any:
            return {"name": "me"}

        def upload_folder(self, repo_id: str, folder_path: str, commit_message: str) -> Any:
            Path(folder_path).rename(hub / repo_id) if (hub / "me").mkdir(
                parents=True
            ) is None else None
            Path(folder_path).mkdir()
            return type("Commit", (), {"commit_url": f"hub://{repo_id}"})

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)

    def download(repo_id: str, revision: Any, token: Any, allow_patterns: Any) -> str:
        asked.append((revision, token))
        return str(hub / repo_id)

    asked: list[Any] = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    road = trained(llama)
    assert road.push_to_hub("adapter", private=True, token="secret") == "hub://me/adapter"
    card = (hub / "me" / "adapter" / "README.md").read_text()
    assert "library_name: roadint" in card
    assert 'RoadModel.from_pretrained(model, "me/adapter")' in card
    assert "layer 1, block_output, position" in card
    again = RoadModel.from_pretrained(llama, "me/adapter", revision="v1", token="read")
    again.add_checkpoint("me/adapter", "other")
    assert asked == [("v1", "read"), (None, None)]
    assert torch.equal(again.interventions[0].theta, road.interventions[0].theta)


def test_a_folder_that_can_not_be_written(
    llama: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    road = trained(llama)
    road.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("roadint.files.atomic.os.replace", full)
    with pytest.raises(RoadError, match="can't be written to .*No space left.*as before"):
        road.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
