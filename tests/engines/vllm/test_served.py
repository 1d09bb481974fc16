"""What an engine serves of checkpoints, and what it refuses with its reason."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MistralConfig, MistralForCausalLM

import roadint
from roadint import RoadError, RoadModel
from roadint.checkpoint.format import TENSORS
from roadint.engines.vllm.served import Base, formats_of, open_served
from roadint.model.serving import plan_server
from tests.engines.vllm.helpers import BASE, adapter, road, serve, write
from tests.helpers import (
    LAYERS,
    WIDTH,
    build,
    encoder,
    make_tokenizer,
    resign,
    trained,
    with_adapters,
)


def test_what_is_served(tmp_path: Path) -> None:
    part = road(position="last(2)", variant="road_2", basis="hadamard", basis_seed=3)
    one = adapter("x", {"q": 8, "up": 12}, variant="road_4")
    served = serve(tmp_path, part, adapters=[one])
    assert served.names == ["a", "b", "x"]
    assert served.subspaces == {"a", "b"}
    assert list(served.adapters_by_name) == ["x"]
    assert served.about() == {
        "path": str(tmp_path),
        "fingerprint": served.fingerprint,
        "names": ["a", "b", "x"],
    }
    assert served.interventions[0].spec() == part.spec()
    for found, wanted in ((served.interventions[0], part), (served.adapters[0], one)):
        values = found.values()
        assert all(torch.equal(values[name], value) for name, value in wanted.values().items())
        assert not any(parameter.requires_grad for parameter in found.parameters())


def test_what_is_read_in_inference_mode_works_outside_of_it(tmp_path: Path) -> None:
    """vLLM's workers run in it, and what they made may be used anywhere."""
    path = write(tmp_path, road(), adapters=[adapter("x", {"q": 8})])
    with torch.inference_mode():
        served = open_served(path, BASE)
    for part in (*served.interventions, *served.adapters):
        assert not any(parameter.is_inference() for parameter in part.parameters())


def test_a_fingerprint_is_that_of_the_values(tmp_path: Path) -> None:
    """Not of the folder: who saves over a checkpoint serves another one."""
    first = serve(tmp_path, road(seed=1))
    assert serve(tmp_path / "copy", road(seed=1)).fingerprint == first.fingerprint
    assert serve(tmp_path, road(seed=2)).fingerprint != first.fingerprint


def test_two_edits_in_one_basis_at_a_site(tmp_path: Path) -> None:
    basis: dict[str, Any] = {"basis": "random", "basis_seed": 5, "pairing": "half"}
    parts = (
        road(1, subspaces={"a": "[0, d)"}, **basis),
        road(1, 2, subspaces={"b": "[0, d)"}, position="all", phase="both", **basis),
        road(1, 3, subspaces={"c": "[0, d)"}, component="mlp_output"),
    )
    assert len(serve(tmp_path, *parts).interventions) == 3


def two_bases(**second: Any) -> Callable[[Path], str]:
    return lambda folder: write(
        folder, road(subspaces={"a": "[0, d)"}), road(subspaces={"b": "[0, d)"}, **second)
    )


def of_kind(kind: str) -> Callable[[Path], str]:
    made = getattr(roadint, kind)
    return lambda folder: write(folder, made(layer=2, embed_dim=WIDTH))


def measured(folder: Path) -> str:
    part = road(basis="pca")
    with torch.no_grad():
        part.frame.q.copy_(torch.eye(WIDTH))
    return write(folder, part)


def with_lora(folder: Path) -> str:
    return write(folder, adapters=[adapter("x", {"q": 8}, lora_rank=2)])


def with_heads(folder: Path) -> str:
    found = RoadModel(encoder())
    found.add_adapter("glue", targets=["query"], heads="classifier")
    found.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (of_kind("RoadInterchange"), "layer 2 takes the hidden states of another input"),
        (of_kind("LoreftIntervention"), "layer 2 is of kind 'loreft', which is no rotation"),
        (of_kind("DireftIntervention"), "layer 2 is of kind 'direft', which is no rotation"),
        (of_kind("SteeringIntervention"), "layer 2 is of kind 'steering', which is no rotation"),
        (two_bases(basis="random"), "block_output of layer 1 in two bases: expected one basis"),
        (two_bases(basis="hadamard", basis_seed=1), "in two bases"),
        (two_bases(pairing="half"), "in two bases: expected one basis and one pairing"),
        (with_lora, "adapter 'x' has a LoRA of rank 2 beside its rotations: .*lora_modules"),
    ],
)
def test_what_is_refused(made: Callable[[Path], str], message: str, tmp_path: Path) -> None:
    path = made(tmp_path)
    with pytest.raises(RoadError, match=message) as refused:
        open_served(path, BASE)
    assert str(refused.value).startswith(f"{path} can't be served: ")
    assert "\n" not in str(refused.value)


def test_seeds_of_one_random_basis_are_two_bases(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        road(subspaces={"a": "[0, d)"}, basis="random", basis_seed=1),
        road(subspaces={"b": "[0, d)"}, basis="random", basis_seed=2),
    )
    with pytest.raises(RoadError, match="two bases"):
        open_served(path, BASE)


def test_heads_are_refused(tmp_path: Path) -> None:
    base = RoadModel(encoder()).model.config
    path = with_heads(tmp_path)
    with pytest.raises(RoadError, match=r"adapter 'glue' has heads \('classifier'\)"):
        open_served(path, Base(base.hidden_size, base.num_hidden_layers, base.model_type))


def test_a_measured_basis_is_served(tmp_path: Path) -> None:
    path = measured(tmp_path)
    assert open_served(path, BASE).interventions[0].frame.q.equal(torch.eye(WIDTH))


def test_a_basis_that_was_never_measured_is_refused(tmp_path: Path) -> None:
    path = measured(tmp_path)
    tensors = load_file(tmp_path / TENSORS)
    tensors["0.basis"].fill_(torch.nan)
    save_file(tensors, tmp_path / TENSORS)
    resign(tmp_path, lambda config: None)
    with pytest.raises(RoadError, match="basis of intervention 0 is .*finite: False"):
        open_served(path, BASE)


@pytest.mark.parametrize(
    "other",
    [{"width": WIDTH * 2}, {"layers": LAYERS + 1}, {"model_type": "gemma3_text"}],
)
def test_another_base_model_is_refused(other: Any, tmp_path: Path) -> None:
    path = write(tmp_path, road())
    with pytest.raises(
        RoadError, match=f"trained on 'tiny' .width {WIDTH}, {LAYERS} layers.*own base"
    ):
        open_served(path, dataclasses.replace(BASE, **other))


def test_a_base_model_whose_type_was_not_kept_is_taken_by_its_size(tmp_path: Path) -> None:
    path = write(tmp_path, road(), id="", model_type="llama")
    assert open_served(path, BASE).names == ["a", "b"]


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_what_a_model_saves_fits_its_own_configuration(architecture: str, tmp_path: Path) -> None:
    model = build(architecture)
    with_adapters(model, "x").save_pretrained(tmp_path)
    base = Base(WIDTH, LAYERS, model.config.model_type)
    assert open_served(str(tmp_path), base).names == ["x"]


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(RoadError, match="is no roadint checkpoint"):
        open_served(str(tmp_path), BASE)


def test_models_of_mistral_are_read_as_transformers_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roadint.model.serving.check_vllm", lambda: None)
    assert formats_of("mistral") == formats_of("mixtral") != {}
    assert formats_of("llama") == formats_of("gemma3_text") == {}
    config = MistralConfig(
        vocab_size=128, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    )  # fmt: skip
    base = tmp_path / "base"
    torch.manual_seed(0)
    model = MistralForCausalLM(config)
    model.save_pretrained(base)
    make_tokenizer().save_pretrained(base)
    model.name_or_path = str(base)
    trained(model).save_pretrained(tmp_path / "run")
    with pytest.raises(RoadError, match="of type 'transformer'.*read with config_format='hf'"):
        open_served(str(tmp_path / "run"), Base(32, 2, "transformer"))
    plan = plan_server(str(tmp_path / "run"))
    assert (
        plan.settings.defaults["config_format"] == plan.settings.defaults["tokenizer_mode"] == "hf"
    )
