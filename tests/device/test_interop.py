"""roadint's interventions in pyvene and pyreft on another device than the CPU."""

from pathlib import Path
from typing import Any

import pytest
import pyvene as pv
import torch
from transformers import TrainingArguments

from roadint import RoadInterchange, RoadIntervention, pyvene_config
from roadint.interop.pyvene import load
from tests.device.helpers import check_same, turned
from tests.helpers import HALVES, IDS, build

AT = {"sources->base": (None, [[[5]] * 4])}
SUBSPACES = [[[0], [1], None, [0, 1]]]


def test_forward_generate_and_training_in_pyvene() -> None:
    def run(device: torch.device) -> Any:
        model = build("gpt2").to(device)
        edit = RoadIntervention(layer=1, subspaces=HALVES, basis="random")
        wrapped = pv.IntervenableModel(pyvene_config(model, edit), model)
        turned(edit)
        ids = {"input_ids": IDS.to(device)}
        _, output = wrapped(ids, unit_locations=AT, subspaces=SUBSPACES)
        output.logits.square().mean().backward()
        _, tokens = wrapped.generate(
            ids,
            unit_locations=AT,
            subspaces=SUBSPACES,
            intervene_on_prompt=True,
            max_new_tokens=3,
            do_sample=False,
        )
        return output.logits.detach(), tokens, [each.grad for each in edit.parameters()]

    check_same(run)


def test_interchange_in_pyvene() -> None:
    def run(device: torch.device) -> Any:
        model = build("gpt2").to(device)
        edit = RoadInterchange(layer=1, subspaces=HALVES, stages=2)
        wrapped = pv.IntervenableModel(pyvene_config(model, edit), model)
        turned(edit)
        base, source = {"input_ids": IDS.to(device)}, {"input_ids": IDS.flip(0).to(device)}
        at = {"sources->base": ([[[5]] * 4], [[[5]] * 4])}
        _, output = wrapped(base, [source], at, subspaces=SUBSPACES)
        return output.logits.detach()

    check_same(run)


def test_saved_and_loaded_by_pyvene(tmp_path: Path) -> None:
    def run(device: torch.device) -> Any:
        model = build("gpt2").to(device)
        edit = RoadIntervention(layer=1, subspaces=HALVES, basis="hadamard")
        wrapped = pv.IntervenableModel(pyvene_config(model, edit), model)
        turned(edit)
        wrapped.save(str(tmp_path / device.type))
        again = load(tmp_path / device.type, model)
        ids = {"input_ids": IDS.to(device)}
        return again(ids, unit_locations=AT, subspaces=SUBSPACES)[1].logits.detach()

    check_same(run)


def test_trained_by_pyreft(tokenizer: Any, device: torch.device, tmp_path: Path) -> None:
    pyreft = pytest.importorskip("pyreft")
    from roadint.interop.pyreft import ReftTrainer, make_data_module
    from roadint.interop.pyreft import load as load_reft

    model = build("llama").to(device)
    edit = RoadIntervention(layer=1, position="last(2)", subspaces=HALVES)
    reft = pyreft.get_reft_model(model, pyvene_config(model, edit))
    asked = (["hello", "what is it", "abc", "zz"], ["one", "two", "three", "4"], [[0], [1]] * 2)
    data = make_data_module(tokenizer, model, *asked, position="last(2)", template="plain")
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, report_to="none", disable_tqdm=True, learning_rate=3e-2
    )
    ReftTrainer(model=reft, processing_class=tokenizer, args=arguments, **data).train()
    assert edit.theta.device == device
    assert bool((edit.theta != 0).all())
    reft.save(str(tmp_path / "saved"))
    again = load_reft(tmp_path / "saved", model)
    found = next(iter(again.interventions.values()))
    assert torch.equal(found.theta, edit.theta)
