"""The base class of roadint's trainers, and their TrainingArguments."""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from roadint.errors import RoadError
from roadint.recipes.recipe import Recipe
from roadint.training.isolation import alone, unchanged
from roadint.training.memory import free_memory, kept_bytes, rows_that_fit

logger = logging.getLogger(__name__)


def training_arguments(recipe: Recipe, folder: Path, **settings: Any) -> TrainingArguments:
    """The optimisation of a recipe, as Trainer takes it.

    Args:
        recipe: The recipe.
        folder: The folder that Trainer writes to.
        settings: Other fields of TrainingArguments, such as when to save and evaluate.

    Returns:
        Arguments without weight decay, which would pull α to 0, and without what makes a step wait
        for a GPU.

    Raises:
        RoadError: for a mixed precision that this machine does not have.
    """
    on_gpu, precision = torch.cuda.is_available(), recipe.optimisation.mixed_precision
    if precision == "fp16" and not on_gpu:
        raise RoadError(
            "recipe setting mixed_precision=fp16 needs a GPU, and there is none here: expected "
            "mixed_precision=bf16, or none"
        )
    if precision == "bf16" and on_gpu and not torch.cuda.is_bf16_supported(False):
        raise RoadError(
            "recipe setting mixed_precision=bf16 needs a GPU that computes in bfloat16, and "
            f"{torch.cuda.get_device_name()} does not: expected mixed_precision=fp16, or none"
        )
    micro_batch = recipe.optimisation.rows_at_once(on_gpu=on_gpu)
    if on_gpu:
        settings = {"accelerator_config": {"non_blocking": True}, **settings}
    return TrainingArguments(
        output_dir=str(folder),
        bf16=precision == "bf16",
        fp16=precision == "fp16",
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
        dataloader_pin_memory=on_gpu,
        logging_nan_inf_filter=False,  # it reads every loss
        # Without this, every process of torchrun would train the same run where there is no GPU.
        use_cpu=not (on_gpu or torch.backends.mps.is_available()),
        disable_tqdm=True,
        log_level="error",
        **settings,
    )


class BaseTrainer(Trainer):
    """Trainer whose optimizer never decays weights.

    It counts all labels, which are those of completions or of rows; Trainer would skip the first. A
    subclass's `compute_loss` divides by that count, `num_items_in_batch`.
    """

    model: Any  # a RoadModel, or another method's; Trainer expects a PreTrainedModel

    def __init__(self, model: Any, args: TrainingArguments, **kwargs: Any) -> None:
        _check_device(model, args)
        super().__init__(model=model, args=args, **kwargs)
        self._loss_shifts_labels = False
        # By the model's own forward Trainer would have every micro-batch take a mean of its own.
        self.model_accepts_loss_kwargs = True
        if self.args.n_gpu > 1:
            # Trainer would copy the model to every GPU in each step, without what hooks it.
            logger.warning(
                "one of %d GPUs trains: torchrun --nproc-per-node %d trains on all of them",
                *(self.args.n_gpu, self.args.n_gpu),
            )
            self.args._n_gpu = 1
            self._train_batch_size = self.args.train_batch_size

    def fit_rows(self, free: float | None = None) -> None:
        """Split steps into as few equal micro-batches as memory takes.

        The loss of a step is the mean over all that its micro-batches hold, so the split changes no
        gradient.

        Args:
            free: The free bytes; by default those of a GPU, and elsewhere steps stay as they are.
        """
        device = self.args.device
        on_gpu = device.type == "cuda"
        if free is None and not on_gpu:
            return
        available = free_memory(device) if free is None else free
        with unchanged(self.model), torch.random.fork_rng([device] if on_gpu else []):
            self.model.train()
            examples: Any = self.train_dataset
            longest = max(examples, key=_length)
            kept = kept_bytes(self.model, partial(self._loss_of, [longest]))
            shared = self._kept_whatever_the_rows(longest, kept)
        self.split_steps(rows_that_fit(available - shared, kept - shared, self._step_rows))

    def _kept_whatever_the_rows(self, example: Any, kept: int) -> int:
        """The bytes of one row that a second one would share: weights, in automatic precision."""
        if not (self.args.bf16 or self.args.fp16) or self._step_rows == 1:
            return 0
        try:
            of_two = kept_bytes(self.model, partial(self._loss_of, [example, example]))
        except torch.OutOfMemoryError:
            return 0
        return max(0, 2 * kept - of_two)

    @property
    def _step_rows(self) -> int:
        return int(self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps)

    def _loss_of(self, examples: list[Any]) -> Tensor:
        inputs = self._prepare_inputs(self.data_collator(examples))
        with self.accelerator.autocast():
            return self.compute_loss(self.model, inputs)  # type: ignore[return-value]

    def split_steps(self, rows: int) -> None:
        """Run steps of as many rows as before in micro-batches of `rows`, in all processes alike.

        Args:
            rows: A divisor of a step's rows; of several processes, the least one counts.
        """
        if self.args.world_size > 1:
            everywhere = self.accelerator.gather(torch.tensor([rows], device=self.args.device))
            rows = int(everywhere.min())
        self.args.gradient_accumulation_steps = self._step_rows // rows
        self.args.per_device_train_batch_size = rows
        self._train_batch_size = self.args.train_batch_size

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's, which leaves the model as it was; accelerate would keep its own forward on it.

        An evaluation waits for the trainings of this process.
        """
        with alone, unchanged(self.model), self.accelerator.autocast():
            return super().evaluation_loop(*args, **kwargs)

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
        else:
            super()._move_model_to_device(model, device)


def _check_device(model: nn.Module, args: TrainingArguments) -> None:
    """Refuse a model on another GPU than Trainer's, which would move it, for good."""
    device = next((value.device for value in model.parameters()), args.device)
    spread = any(hasattr(module, "_hf_hook") for module in model.modules())
    moves = device.type == args.device.type == "cuda" and device != args.device
    if moves and args.world_size == 1 and not spread:
        raise RoadError(
            f"the model is on {device}, and Trainer trains on {args.device}: expected the "
            f"environment's CUDA_VISIBLE_DEVICES={device.index}, where that GPU is cuda:0"
        )


def _length(example: Any) -> int:
    """The tokens of an example: roadint's, or a task's mapping of inputs."""
    return len(example["input_ids"] if isinstance(example, Mapping) else example)
