"""What pyreft 0.1.0 lacks beside today's transformers: a trainer, data with subspaces and the prompt's own positions, CPU loading.

pyreft's own requirements pin transformers 4.45; install it without them: `pip install --no-deps pyreft==0.1.0`.
"""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import DataCollatorForSeq2Seq

from roadint.data.prompts import Template, completion_ids, pad_id, prompt_ids, render
from roadint.errors import RoadError, first_line
from roadint.grammar.position import Position
from roadint.interop.pyvene import load as load_pyvene
from roadint.interop.pyvene import read_tensors, state_of
from roadint.interventions.loreft import LoreftIntervention

try:
    with contextlib.redirect_stdout(io.StringIO()):
        import pyreft
except ImportError as error:
    raise RoadError(
        f"pyreft is not there ({error}): pip install --no-deps pyreft==0.1.0"
    ) from error


class ReftTrainer(pyreft.ReftTrainerForCausalLM):  # type: ignore[misc]
    """pyreft's trainer for causal language models, as transformers 5 calls it; arguments as transformers.Trainer's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # pyreft's loss is a mean over its own batch: accumulated steps have to be averaged.
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """pyreft's loss; num_items_in_batch is not used."""
        del num_items_in_batch
        return super().compute_loss(model, inputs, return_outputs=return_outputs)

    def _load_best_model(self) -> None:
        load_intervention(self.model, f"{self.state.best_model_checkpoint}/intervenable_model")


def make_data_module(
    tokenizer: Any,
    model: nn.Module,
    instructions: Sequence[str],
    outputs: Sequence[str],
    subspaces: Sequence[Sequence[int]] | None = None,
    *,
    position: str | Position = "last",
    template: Template = "alpaca",
    num_interventions: int = 1,
    stop: bool | Sequence[bool] = True,
) -> dict[str, Any]:
    """train_dataset, eval_dataset and data_collator, as pyreft's `make_last_position_supervised_data_module` returns them.

    subspaces: for each example, indices into the interventions' partition, as many in each. position: of the prompt alone, so that
    training and inference edit the same tokens. template: makes the prompt of an instruction; "plain" where it is one already.
    stop: whether completions end with the end-of-sequence token, for all or for each. Raises RoadError where lengths differ.
    """
    from datasets import Dataset

    given = {"outputs": outputs, "subspaces": instructions if subspaces is None else subspaces}
    for name, each in given.items():
        if len(each) != len(instructions):
            raise RoadError(
                f"{len(each)} {name} for {len(instructions)} instructions: expected one each"
            )
    if subspaces is not None and len({len(each) for each in subspaces}) > 1:
        raise RoadError(
            "subspaces of different lengths: pyreft batches need as many indices for every example"
        )
    ends = [stop] * len(instructions) if isinstance(stop, bool) else list(stop)
    where = Position.parse(position)
    columns: dict[str, list[Any]] = {"input_ids": [], "intervention_locations": [], "labels": []}
    for instruction, output, end in zip(instructions, outputs, ends, strict=True):
        prompt = prompt_ids(tokenizer, template, instruction)
        completion = completion_ids(
            tokenizer, template, render(template, instruction, tokenizer), output
        )
        completion += [tokenizer.eos_token_id] * end
        length = torch.tensor([len(prompt)])
        where.check(length)
        edited = (
            where.edited(torch.arange(len(prompt))[None], length)[0].nonzero().flatten().tolist()
        )
        columns["input_ids"].append(prompt + completion)
        columns["labels"].append([-100] * len(prompt) + completion)
        columns["intervention_locations"].append([edited] * num_interventions)
    if subspaces is not None:
        columns["subspaces"] = [[list(each)] * num_interventions for each in subspaces]
    if tokenizer.pad_token is None:
        tokenizer.pad_token_id = pad_id(tokenizer)
    collator = DataCollatorForSeq2Seq(
        tokenizer=tokenizer, model=model, label_pad_token_id=-100, padding="longest"
    )
    return {
        "train_dataset": Dataset.from_dict(columns),
        "eval_dataset": None,
        "data_collator": pyreft.ReftDataCollator(data_collator=collator),
    }


def load(folder: str | Path, model: nn.Module, *, classes: Sequence[type] = ()) -> Any:
    """`pyreft.ReftModel.load`, on whatever device the model is, for model types that pyvene may not know.

    classes: as in `roadint.interop.pyvene.load`; pyreft's own are known. Raises RoadError.
    """
    return pyreft.ReftModel._convert_to_reft_model(
        load_pyvene(folder, model, classes=[*_known_classes(), *classes])
    )


def _known_classes() -> list[type]:
    return [
        each
        for name, each in vars(pyreft).items()
        if name.endswith("Intervention") and isinstance(each, type)
    ]


def load_intervention(reft_model: Any, folder: str | Path) -> None:
    """`save_intervention`'s values, and those of the model that were saved with them, on the model's device. Raises RoadError."""
    for key, intervention in reft_model.interventions.items():
        try:
            intervention.load_state_dict(state_of(folder, key))
        except (
            RuntimeError,
            KeyError,
            AssertionError,
        ) as error:  # other shapes, or another kind's values
            raise RoadError(
                f"the values of {key} in {folder} do not fit it ({first_line(error)})"
            ) from error
    saved = Path(folder) / "pytorch_model.bin"
    if saved.is_file():
        reft_model.model.load_state_dict(read_tensors(saved), strict=False)


def loreft_from(reft_model: Any, position: str | Position = "last") -> list[LoreftIntervention]:
    """roadint's LoReFT with the values of a pyreft model's LoreftInterventions (linear, in eval mode), for RoadModel.

    Raises RoadError for interventions of other kinds.
    """
    found = []
    for key, theirs in reft_model.interventions.items():
        if not isinstance(theirs, pyreft.LoreftIntervention):
            raise RoadError(f"{key} is a {type(theirs).__name__}: expected a LoreftIntervention")
        site = reft_model.representations[key]
        weight, rotate = theirs.learned_source.weight.detach(), theirs.rotate_layer.weight.detach()
        ours = LoreftIntervention(
            layer=int(site.layer),
            component=site.component,
            position=position,
            rank=len(weight),
            embed_dim=weight.shape[1],
        )
        with torch.no_grad():
            ours.learned_source.weight.copy_(weight)
            ours.learned_source.bias.copy_(theirs.learned_source.bias)
            ours.rotate_layer.weight = rotate.float()
        found.append(ours)
    return found
