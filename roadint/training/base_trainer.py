"""The base class of roadint's trainers, and their TrainingArguments."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from roadint.recipes.recipe import Recipe


def training_arguments(recipe: Recipe, folder: Path, **settings: Any) -> TrainingArguments:
    """The optimisation of a recipe, as Trainer takes it.

    Args:
        recipe: The recipe.
        folder: The folder that Trainer writes to.
        settings: Other fields of TrainingArguments, such as when to save and evaluate.

    Returns:
        Arguments without weight decay, which would pull α to 0.
    """
    micro_batch = recipe.optimisation.micro_batch or recipe.optimisation.batch_size
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=recipe.optimisation.batch_size // micro_batch,
        num_train_epochs=recipe.optimisation.epochs,
        learning_rate=recipe.optimisation.lr,
        lr_scheduler_type=recipe.optimisation.schedule,
        warmup_steps=recipe.optimisation.warmup_steps,
        weight_decay=0.0,
        max_grad_norm=recipe.optimisation.max_grad_norm,
        seed=recipe.optimisation.seed,
        logging_steps=10,
        report_to="none",
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=torch.cuda.is_available(),
        # Without this, every process of torchrun would train the same run where there is no GPU.
        use_cpu=not (torch.cuda.is_available() or torch.backends.mps.is_available()),
        disable_tqdm=True,
        log_level="error",
        **settings,
    )


class BaseTrainer(Trainer):
    """Trainer whose optimizer never decays weights.

    It counts all labels, which are those of completions or of rows; Trainer would skip the first.
    """

    model: Any  # a RoadModel, or another method's; Trainer expects a PreTrainedModel

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._loss_shifts_labels = False

    def trained_parameters(self) -> list[nn.Parameter]:
        """The parameters for the optimizer: those that require gradients."""
        return [value for value in self.model.parameters() if value.requires_grad]

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """The chosen optimizer (AdamW), without the weight decay that is its default."""
        if self.optimizer is None:
            optimizer_class, settings = (
                self.optimizer_cls_and_kwargs
                or self.get_optimizer_cls_and_kwargs(self.args, self.model)
            )
            settings = {**settings, "weight_decay": 0.0}
            self.optimizer = optimizer_class(self.trained_parameters(), **settings)
        return self.optimizer

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        """Leave a model where it is that accelerate runs on several devices, or offloads."""
        if any(hasattr(module, "_hf_hook") for module in model.modules()):
            self.accelerator.device_placement = False
            self.args._n_gpu = 1  # else Trainer copies the model to every GPU
        else:
            super()._move_model_to_device(model, device)
