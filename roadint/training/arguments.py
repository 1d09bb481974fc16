"""What every training of a recipe tells transformers' Trainer."""

from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from roadint.recipes.recipe import Recipe


def arguments_of(recipe: Recipe, folder: Path, **more: Any) -> TrainingArguments:
    """The recipe's optimisation, without weight decay. folder: of what Trainer writes; more: when it saves and evaluates."""
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
        # Without this, torchrun on a machine without a GPU would train one and the same run in every process.
        use_cpu=not (torch.cuda.is_available() or torch.backends.mps.is_available()),
        disable_tqdm=True,
        log_level="error",
        **more,
    )
