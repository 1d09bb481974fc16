"""What pyreft 0.1.0 lacks with today's transformers: a trainer, data with subspaces, loading.

pyreft's requirements pin transformers 4.45; install it without them:
`pip install --no-deps pyreft==0.1.0`.
"""

import contextlib
import copy
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase

from roadint.data.prompts import (
    Template,
    completion_ids,
    pad_id,
    prompt_ids,
    render,
    with_end,
)
from roadint.errors import RoadError, first_line
from roadint.grammar.position import Position
from roadint.interop.pyvene import load as load_pyvene
from roadint.interop.pyvene import load_model_values, state_of
from roadint.interventions.loreft import LoreftIntervention

try:
    with contextlib.redirect_stdout(io.StringIO()):
        import pyreft
except ImportError as error:
    raise RoadError(
        f"pyreft is not there ({error}): pip install --no-deps pyreft==0.1.0"
    ) from error

_IGNORED = -100  # the label of a token that no loss counts


class ReftTrainer(pyreft.ReftTrainerForCausalLM):  # type: ignore[misc]
    """pyreft's trainer for causal language models, as transformers 5 calls it.

    Arguments are those of transformers.Trainer.
    """

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
    tokenizer: PreTrainedTokenizerBase,
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
    """Training data, as pyreft's `make_last_position_supervised_data_module` returns them.

    Args:
        tokenizer: The model's; it gets a padding token if it has none.
        model: The model that is trained.
        instructions: The instructions, one an example.
        outputs: The outputs, one an example.
        subspaces: For each example, indices into the interventions' partition, the same number for
            all examples; all subspaces by default.
        position: The tokens of the prompt that are edited, in training as in inference.
        template: The template of prompts; "plain" where instructions are prompts already.
        num_interventions: How many interventions the model has.
        stop: Whether completions end with the end-of-sequence token, for all examples or one an
            example.

    Returns:
        "train_dataset", "eval_dataset" (None) and "data_collator".

    Raises:
        RoadError: where lengths differ.
    """
    from datasets import Dataset

    _check_lengths(instructions, {"outputs": outputs, "subspaces": subspaces})
    if subspaces is not None and len({len(indices) for indices in subspaces}) > 1:
        raise RoadError(
            "subspaces of different lengths: pyreft batches need as many indices for every example"
        )
    ends = [stop] * len(instructions) if isinstance(stop, bool) else list(stop)
    parsed = Position.parse(position)
    columns: dict[str, list[Any]] = {"input_ids": [], "intervention_locations": [], "labels": []}
    for instruction, output, end in zip(instructions, outputs, ends, strict=True):
        prompt = prompt_ids(tokenizer, template, instruction)
        rendered = render(template, instruction, tokenizer)
        completion = completion_ids(tokenizer, template, rendered, output)
        completion = with_end(completion, tokenizer) if end else completion
        columns["input_ids"].append(prompt + completion)
        columns["labels"].append([_IGNORED] * len(prompt) + completion)
        edited = parsed.indices(len(prompt))
        columns["intervention_locations"].append([edited] * num_interventions)
    if subspaces is not None:
        columns["subspaces"] = [[list(indices)] * num_interventions for indices in subspaces]
    if tokenizer.pad_token is None:
        tokenizer.pad_token_id = pad_id(tokenizer)
    # Locations are counted from a row's first token, so padding has to come after the last one.
    padding = copy.copy(tokenizer)
    padding.padding_side = "right"
    collator = DataCollatorForSeq2Seq(
        tokenizer=padding, model=model, label_pad_token_id=_IGNORED, padding="longest"
    )
    return {
        "train_dataset": Dataset.from_dict(columns),
        "eval_dataset": None,
        "data_collator": pyreft.ReftDataCollator(data_collator=collator),
    }


def _check_lengths(
    instructions: Sequence[str], columns: Mapping[str, Sequence[Any] | None]
) -> None:
    for name, values in columns.items():
        if values is not None and len(values) != len(instructions):
            raise RoadError(
                f"{len(values)} {name} for {len(instructions)} instructions: expected one each"
            )


def load(
    folder: str | Path,
    model: nn.Module,
    *,
    classes: Sequence[type] = (),
    include_model: bool | None = None,
) -> Any:
    """What `pyreft.ReftModel.save` wrote, on whatever device the model is.

    As `pyreft.ReftModel.load`, also for model types that pyvene does not know.

    Args:
        folder: The folder that was saved.
        model: The base model.
        classes: As in `roadint.interop.pyvene.load`; pyreft's own are known.
        include_model: As in `roadint.interop.pyvene.load`.

    Returns:
        A `pyreft.ReftModel`.

    Raises:
        RoadError: as `roadint.interop.pyvene.load`.
    """
    known = [
        value
        for name, value in vars(pyreft).items()
        if name.endswith("Intervention") and isinstance(value, type)
    ]
    loaded = load_pyvene(folder, model, classes=[*known, *classes], include_model=include_model)
    return pyreft.ReftModel._convert_to_reft_model(loaded)


def load_intervention(reft_model: Any, folder: str | Path) -> None:
    """Put the values that `save_intervention` wrote into a ReftModel, on the model's device.

    Values of the model itself that were saved with them come back too.

    Args:
        reft_model: A ReftModel with the same interventions.
        folder: The folder that was saved.

    Raises:
        RoadError: where a file is missing, damaged or does not fit.
    """
    for key, intervention in reft_model.interventions.items():
        try:
            intervention.load_state_dict(state_of(folder, key))
        except (RuntimeError, KeyError, AssertionError) as error:
            # Other shapes, or another kind's values.
            raise RoadError(
                f"the values of {key} in {folder} do not fit it ({first_line(error)})"
            ) from error
    saved = Path(folder) / "pytorch_model.bin"
    if saved.is_file():
        load_model_values(reft_model.model, saved)


def loreft_from(reft_model: Any, position: str | Position = "last") -> list[LoreftIntervention]:
    """roadint's LoReFT with the values of pyreft's, for a RoadModel.

    Args:
        reft_model: A pyreft model, all of whose interventions are LoreftInterventions (linear, in
            eval mode).
        position: The tokens that are edited, which pyreft takes as `unit_locations`.

    Raises:
        RoadError: where an intervention is of another kind.
    """
    interventions = []
    for key, original in reft_model.interventions.items():
        if not isinstance(original, pyreft.LoreftIntervention):
            raise RoadError(f"{key} is a {type(original).__name__}: expected a LoreftIntervention")
        if type(original.act_fn).__name__ != "LinearActivation":
            raise RoadError(
                f"{key} has the activation {type(original.act_fn).__name__}, and LoReFT here is "
                "linear: expected act_fn='linear'"
            )
        representation, source = reft_model.representations[key], original.learned_source
        rank, width = source.weight.shape
        intervention = LoreftIntervention(
            layer=int(representation.layer),
            component=representation.component,
            position=position,
            rank=rank,
            embed_dim=width,
        )
        with torch.no_grad():
            intervention.learned_source.weight.copy_(source.weight)
            intervention.learned_source.bias.copy_(source.bias)
            intervention.rotate_layer.weight = original.rotate_layer.weight.detach().float()
        interventions.append(intervention)
    return interventions
