"""What a RoadTrainer refuses of Trainer's settings: what would not act there, or would be wrong."""

from collections.abc import Mapping
from typing import Any

from transformers import TrainingArguments

from roadint.errors import RoadError, quoted

_REFUSED = {
    "label_smoothing_factor": "the loss is the completions' own",
    "neftune_noise_alpha": "the base model is frozen, in its own mode",
    "gradient_checkpointing": "it computes the layers again, without the edit",
    "activation_checkpointing": "it computes the layers again, without the edit",
    "torch_compile": "it compiles the model as a whole, without the edit; "
    "expected compile=True of the RoadTrainer, or of the recipe",
    # Its functions take the place of the model's own, some of them in all models of the process.
    "use_liger_kernel": "it changes the caller's model for good; "
    "expected a model with Liger's kernels in it before it became a RoadModel",
    "bf16_full_eval": "it rounds the caller's model for good; expected bf16=True, which does not",
    "fp16_full_eval": "it rounds the caller's model for good; expected fp16=True, which does not",
    "debug": "its hooks would stay in the caller's model",
    "push_to_hub": "Trainer would upload a model without the edit; "
    "expected RoadModel.push_to_hub afterwards",
    "auto_find_batch_size": "it would start again from values that are trained already; "
    "expected a smaller batch",
}


def check_arguments(args: TrainingArguments) -> None:
    """Refuse settings of Trainer.

    Raises:
        RoadError: for one that is set.
    """
    if args.weight_decay:
        raise RoadError(
            f"weight_decay={args.weight_decay} pulls α toward 0, not toward the identity: "
            "expected 0"
        )
    order = getattr(args, "train_sampling_strategy", "random")
    if order != "random" or getattr(args, "group_by_length", False):
        raise RoadError(
            f"train_sampling_strategy={quoted(str(order))} would not act in a RoadTrainer, whose "
            "steps hold every composition, rows of similar length together: expected 'random'"
        )
    for name, reason in _REFUSED.items():
        value = getattr(args, name, None)  # some versions of transformers do not have it
        if value:
            raise RoadError(f"{name}={quoted(value)} can't be used in a RoadTrainer: {reason}")


def check_functions(arguments: Mapping[str, Any], *, constrained: bool) -> None:
    """Refuse functions and optimizers.

    Args:
        arguments: Trainer's arguments.
        constrained: Whether constraints act around the steps of the optimizer.

    Raises:
        RoadError: for one that is given.
    """
    if arguments.get("compute_loss_func") is not None:
        raise RoadError(
            "compute_loss_func would not be called in a RoadTrainer: "
            "expected to override compute_loss"
        )
    optimizer = (arguments.get("optimizers") or (None, None))[0]
    if optimizer is None:
        return
    if constrained:
        raise RoadError(
            "constraints act around the steps of the trainer's own optimizer: "
            "expected no optimizers"
        )
    if any(group.get("weight_decay") for group in optimizer.param_groups):
        raise RoadError(
            "the optimizer's weight_decay pulls α toward 0, not toward the identity: expected 0"
        )
