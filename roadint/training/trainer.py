"""RoadTrainer: transformers' Trainer for a RoadModel, with a composition for every example."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerState, TrainingArguments

from roadint.checkpoint.reading import read
from roadint.data.collate import Collator, completion_nll, moved
from roadint.engines.transformers.partial import Resumed
from roadint.errors import RoadError, quoted
from roadint.model.road_model import RoadModel
from roadint.training.base_trainer import BaseTrainer
from roadint.training.companions import Companions
from roadint.training.compiled import Forwards, compiled_forwards
from roadint.training.composition_losses import CompositionLosses
from roadint.training.constraints import Constraints
from roadint.training.isolation import alone, frozen, unchanged
from roadint.training.prefix.cache import PrefixCache, PrefixReport
from roadint.training.prefix.sharing import SharedPrefix, reusable_prefix
from roadint.training.refusals import check_arguments, check_functions
from roadint.training.run_folder import checkpoints_in, is_whole, log_state, restore
from roadint.training.sampler import MixedLengthSampler

logger = logging.getLogger(__name__)


class RoadTrainer(BaseTrainer):
    """Trains the interventions of a RoadModel on Examples, the base model frozen meanwhile.

    All of Trainer works (schedules, logging, checkpoints, resuming, the best epoch, accumulation,
    many processes), or is refused. The loss is the mean negative log-likelihood (nats) of the
    completions' tokens; the logs also have it for every composition, as `loss/german`.

    Args:
        model: The RoadModel.
        args: Trainer's settings. On a GPU, logging_nan_inf_filter=False, a pinned memory and
            non_blocking copies (accelerator_config) leave a step nothing to wait for.
        companions: Composition → its companion, or a list of companions. In a share
            `companion_rate` of the composition's examples one of them, at random, acts too, without
            gradients, so that the composition learns to work with it.
        companion_rate: A share, from 0 to 1.
        constraints: Constraints on values around steps; see roadint.training.constraints.
        prefix_reuse: Compute once what the edit can't change (roadint.training.prefix), where the
            data_collator is roadint's.
        prefix_memory: The bytes that prefix reuse may store; a quarter of what is free by default.
        shared_prefix: Lets the next training use what prefix reuse stored in this one.
        compile: Compile the layers above the lowest edit (roadint.training.compiled), with
            torch.compile's default or the backend of this name.
        quiet: Whether prefix reuse has no progress bar.
        kwargs: Trainer's other arguments; data sets are sequences of Example
            (roadint.data.collate).

    Attributes:
        prefix_report: What prefix reuse stored in the last training; None without it.

    Raises:
        RoadError: for weight decay, which would pull α to 0, not to the identity, and for settings
            that would not act.
    """

    train_dataset: Any

    def __init__(
        self,
        model: RoadModel,
        args: TrainingArguments,
        *,
        companions: Mapping[str, str | Sequence[str]] | None = None,
        companion_rate: float = 0.5,
        constraints: Constraints | None = None,
        prefix_reuse: bool = True,
        prefix_memory: float | None = None,
        shared_prefix: SharedPrefix | None = None,
        compile: bool | str = False,
        quiet: bool = True,
        **kwargs: Any,
    ) -> None:
        check_arguments(args)
        check_functions(kwargs, constrained=constraints is not None)
        self._companions = Companions.parse(model, companions or {}, companion_rate)
        self._constraints = constraints
        self._prefix_reuse, self._prefix_memory, self._quiet = prefix_reuse, prefix_memory, quiet
        self._shared_prefix = shared_prefix
        self._backend = "inductor" if compile is True else compile
        self._compiled: Forwards = {}
        self._prefix_cache: PrefixCache | None = None
        self.prefix_report: PrefixReport | None = None
        self._losses = CompositionLosses()
        if args.label_names is None:
            args.label_names = ["labels"]  # a collator's, which a RoadModel's forward does not name
        self._epochs = _Epochs()
        with alone, unchanged(model):
            super().__init__(model=model, args=args, **kwargs)
        self.add_callback(self._epochs)

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Trainer's train, with the base model frozen meanwhile, and the prefix computed once.

        A training waits for the others of this process.

        Args:
            resume_from_checkpoint: A checkpoint's folder, or True for the last whole one in the
                output folder.
            args: Trainer's other arguments.
            kwargs: Trainer's other arguments.

        Returns:
            Trainer's result.

        Raises:
            RoadError: where a checkpoint lacks something that continuing needs.
        """
        last = self._whole_checkpoint(resume_from_checkpoint)
        if last is not None:  # Trainer loads it later than the prefix is computed
            self._load_from_checkpoint(last)
        self._losses = CompositionLosses()
        with (
            alone,
            self.model.running(),
            unchanged(self.model),
            frozen(self.model.model),
            self._reusing_prefix(),
            self._compiling(),
        ):
            return super().train(last, *args, **kwargs)

    def fit_rows(self, free: float | None = None) -> None:
        """As BaseTrainer's, with the base model frozen, as it is while training."""
        with frozen(self.model.model):
            super().fit_rows(free)

    def _whole_checkpoint(self, wanted: str | bool | None) -> str | None:
        if not wanted:
            return None
        output = Path(str(self.args.output_dir))
        paths = checkpoints_in(output) if wanted is True else [Path(str(wanted))]
        whole = [path for path in paths if is_whole(path, self.args.world_size)]
        if not whole:
            raise RoadError(
                f"resume_from_checkpoint={quoted(wanted)}: expected a checkpoint with all that a "
                "training needs to go on, its optimizer's and random states too"
                f"{f', in {output}' if wanted is True else ''}; "
                "RoadModel.from_pretrained takes its values alone"
            )
        return str(whole[-1])

    @contextmanager
    def _reusing_prefix(self) -> Iterator[None]:
        collator, cache = self.data_collator, None
        if self._prefix_reuse and isinstance(collator, Collator):
            cache = self._prefix_for(collator)
        elif self._prefix_reuse:
            logger.warning(
                "no prefix reuse, training runs the plain way: a %s makes the batches, which may "
                "hold more than tokens",
                type(collator).__name__,
            )
        self.prefix_report = cache.report if cache else None
        try:
            if cache is not None:
                self._prefix_cache, self.data_collator = cache, cache.batches
                self._drop_loaders()
            yield
        finally:
            self._prefix_cache, self.data_collator = None, collator
            self._drop_loaders()

    def _drop_loaders(self) -> None:
        """Forget data loaders, which hold a collator and, with it, all that prefix reuse stored."""
        handler = self.callback_handler
        handler.train_dataloader = handler.eval_dataloader = None
        self.accelerator._dataloaders.clear()
        vars(self).pop("_eval_dataloaders", None)

    @contextmanager
    def _compiling(self) -> Iterator[None]:
        if self._backend:
            longest = sorted(self.train_dataset, key=len)[-2:]
            batch = moved(self.data_collator(longest), self.model.device)
            with self.accelerator.autocast():
                nll = partial(self._nll, self.model, batch)
                self._compiled = compiled_forwards(self.model, nll, str(self._backend))
        try:
            yield
        finally:
            self._compiled = {}

    def _prefix_for(self, collator: Collator) -> PrefixCache | None:
        shard = self._get_train_sampler().shard(self.args.process_index)
        data = self.model, [self.train_dataset[index] for index in shard], collator
        folder = Path(self.args.output_dir or ".")
        build = partial(
            reusable_prefix, *data, memory=self._prefix_memory, folder=folder, quiet=self._quiet
        )
        return self._shared_prefix.take(*data, build) if self._shared_prefix else build()

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The batches of the next step; what they hold on the host is copied from now on."""
        batches, tokens = super().get_batch_samples(*args, **kwargs)
        if self._prefix_cache is not None:
            self._prefix_cache.fetch(batches)
        return batches, tokens

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The mean over the tokens of the (accumulated) batch, which is also summed for the logs.

        Args:
            model: The RoadModel, or a wrapper of it.
            inputs: A batch.
            return_outputs: Whether the tokens' losses are wanted.
            num_items_in_batch: The number of tokens in the accumulated batches.

        Returns:
            The loss, in nats a token, or a pair of it and {"nll": [tokens]}.
        """
        compositions = inputs["compose"]
        acting = self._companions.draw(compositions) if model.training else {}
        compiled = self._compiled if model.training else {}
        nll, rows = self._nll(model, {**inputs, **acting}, compiled)
        if num_items_in_batch is None:
            loss = nll.mean()
        else:
            loss = nll.sum() / num_items_in_batch
            if self.args.average_tokens_across_devices:
                loss = loss * self.accelerator.num_processes
        if model.training:
            self._losses.add(compositions, nll, rows)
        return (loss, {"nll": nll}) if return_outputs else loss

    def _nll(
        self, model: nn.Module, batch: dict[str, Any], compiled: Forwards
    ) -> tuple[Float[Tensor, " tokens"], Int[Tensor, " tokens"]]:
        if self._prefix_cache:
            return self._prefix_cache.nll(model, batch, compiled)
        resumed = Resumed(0, None, forwards=compiled) if compiled else None
        return completion_nll(model, {**batch, "resumed": resumed})

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[
        Float[Tensor, ""] | None,
        Float[Tensor, "rows columns"] | None,
        Int[Tensor, "rows columns"] | None,
    ]:
        """The loss of a batch, and its completions' tokens with their losses.

        Args:
            model: The RoadModel, or a wrapper of it.
            inputs: A batch.
            prediction_loss_only: Whether only the loss is wanted.
            ignore_keys: As in Trainer.

        Returns:
            The loss; for every row, the negative log-likelihoods of its completion's tokens, and
            the tokens. Rows are padded with -100.
        """
        loss, nll, labels = super().prediction_step(
            model, inputs, prediction_loss_only, ignore_keys
        )
        if nll is None or labels is None:
            return loss, nll, labels
        rows = inputs["places"][0].to(nll.device)
        counts = rows.bincount(minlength=len(inputs["compose"])).tolist()
        return loss, _by_row(nll, counts), _by_row(labels, counts)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the mean loss of every composition since the last line."""
        if "loss" in logs:
            means = self._losses.take_means(self.args.world_size)
            logs.update({f"loss/{composition}": mean for composition, mean in means.items()})
        super().log(logs, *args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> MixedLengthSampler:
        micro_batch, processes = self.args.train_batch_size, self.args.world_size
        self._epochs.sampler = MixedLengthSampler(
            train_dataset if train_dataset is not None else self.train_dataset,
            micro_batch * self.args.gradient_accumulation_steps * processes,
            self.args.seed if self.args.data_seed is None else self.args.data_seed,
            processes=processes,
            micro_batch=micro_batch,
        )
        return self._epochs.sampler

    def trained_parameters(self) -> list[nn.Parameter]:
        """Those of the RoadModel, even where the base model is not frozen yet."""
        return list(self.model.trained_parameters())

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """The chosen optimizer (AdamW), without weight decay, with the constraints on its steps."""
        new = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if new and self._constraints is not None:
            adapters = list(self.model.adapters.values())
            self._constraints.install(optimizer, self.model.interventions, adapters)
        return optimizer

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        del state_dict
        if self.args.should_save:  # Trainer calls it in every process
            self.model.save_pretrained(Path(str(output_dir or self.args.output_dir)))

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        del model
        restore(self.model, read(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        """Trainer would look for a model.safetensors, which a RoadModel does not write."""
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))

    def _save_rng_state(self, output_dir: str) -> None:
        """Also save this process's sums for the next line of the log."""
        super()._save_rng_state(output_dir)
        state = {
            "sums": self._losses.state(),
            "loss": self._tr_loss.cpu(),
            "logged": self._globalstep_last_logged,
        }
        torch.save(state, Path(output_dir) / log_state(self.args.process_index))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        file = None if checkpoint is None else Path(checkpoint) / log_state(self.args.process_index)
        if file is not None and file.is_file():
            state = torch.load(file, map_location=self.args.device, weights_only=True)
            self._losses.restore(state["sums"])
            # What is not logged yet comes to the next line of the log, not to this call's mean.
            self._tr_loss, self._total_loss_scalar = state["loss"], -float(state["loss"])
            self._globalstep_last_logged = state["logged"]


class _Epochs(TrainerCallback):
    """Tells the sampler the epoch, which does not reach it through all of accelerate's wrappers."""

    sampler: MixedLengthSampler | None = None

    def on_epoch_begin(self, args: Any, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        if self.sampler is not None:
            self.sampler.set_epoch(int(state.epoch or 0))


def _by_row(values: Tensor, counts: list[int]) -> Tensor:
    rows = list(torch.split(values, counts))
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
