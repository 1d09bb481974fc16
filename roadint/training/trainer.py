"""RoadTrainer: transformers' Trainer for a RoadModel; all subspaces at once, each example through its own."""

import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from roadint.adapters.products import check_products
from roadint.data.collate import Collator, Example, completion_nll
from roadint.errors import RoadError, listing, quoted
from roadint.grammar.composition import Composition
from roadint.interventions.sums import check_sums
from roadint.model.checkpoint import read
from roadint.model.road_model import RoadModel
from roadint.training.constraints import Constraints
from roadint.training.prefix_cache import Kept, PrefixCache, Report, build
from roadint.training.sampler import MixedLengthSampler
from roadint.training.unfinished import is_whole, listed, log_state, restore

alone = threading.RLock()  # held by the training that runs in this process


class RoadTrainer(Trainer):
    """Trains the interventions of a RoadModel on Examples (roadint.data.collate), the base model frozen meanwhile.

    Everything of Trainer works: schedules, logging, checkpoints, resuming, the best epoch, accumulation, several processes; what
    can't is refused. The loss is the mean
    negative log-likelihood (nats) of the completions' tokens; the logs hold it for each composition too, as `loss/german`.
    companions: composition → composition, or several. A share `companion_rate` of the examples of the first runs with the second
    (one of them, at random) acting too, without gradients for it, so that the first learns to work beside it.
    constraints: what happens to the values around each step; see roadint.training.constraints.
    prefix_reuse: compute once what the edit can't change (roadint.training.prefix_cache), where the data_collator is roadint's;
    prefix_memory: its budget in bytes, a quarter of what is free by default. `prefix_report` says what was chosen.
    kept: where what is stored stays for the next training. quiet: no progress bar for it.
    Raises RoadError for weight decay, which would pull α to 0, not to the identity, and for what would not act.
    """

    model: Any  # a RoadModel; Trainer knows only PreTrainedModels
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
        kept: Kept | None = None,
        quiet: bool = True,
        **kwargs: Any,
    ) -> None:
        if args.weight_decay:
            raise RoadError(
                f"weight_decay={args.weight_decay} pulls α toward 0, not toward the identity: expected 0"
            )
        _check_arguments(args, kwargs, constrained=constraints is not None)
        self._companions = together(model, companions or {}, companion_rate)
        self._companion_rate = companion_rate
        self._constraints = constraints
        self._prefix_reuse, self._prefix_memory, self._quiet = prefix_reuse, prefix_memory, quiet
        self._prefix_cache: PrefixCache | None = None
        self._kept = kept
        self.prefix_report: Report | None = None
        self._sums: dict[str, list[Tensor]] = defaultdict(list)
        if args.label_names is None:
            args.label_names = ["labels"]  # a collator's, which a RoadModel's forward does not name
        with alone, unchanged(model):
            super().__init__(model=model, args=args, **kwargs)
        self._loss_shifts_labels = (
            False  # a collator's labels are those of the completions, all of which count
        )

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Trainer's train, with the base model frozen while it runs and left as it was found, and the prefix computed once.

        A training waits for others of this process: accelerate's state and torch's random numbers are the whole process's.
        resume_from_checkpoint: True for the last whole checkpoint in the output folder. Raises RoadError where it is not whole.
        """
        last = self._checked(resume_from_checkpoint)
        own, pinned = self.data_collator, self.args.dataloader_pin_memory
        with (
            alone,
            self.model.running(),
            unchanged(self.model),
            frozen(self.model.model),
            ExitStack() as undo,
        ):
            if self._prefix_reuse and isinstance(own, Collator):
                sampler = self._get_train_sampler()
                self._prefix_cache = self._stored(
                    [self.train_dataset[index] for index in sampler.shard(self.args.process_index)],
                    own,
                )
                undo.callback(self._forget_prefix, own, pinned)
                self.data_collator = self._prefix_cache or own
                if self._prefix_cache and self.model.device.type != "cpu":
                    self.args.dataloader_pin_memory = (
                        False  # what is stored is on the device already
                    )
                self.prefix_report = self._prefix_cache.report if self._prefix_cache else None
            return super().train(last, *args, **kwargs)

    def _checked(self, wanted: str | bool | None) -> str | None:
        if not wanted:
            return None
        found = listed(Path(str(self.args.output_dir))) if wanted is True else [Path(str(wanted))]
        whole = [path for path in found if is_whole(path, self.args.world_size)]
        if not whole:
            raise RoadError(
                f"resume_from_checkpoint={quoted(wanted)}: expected a checkpoint with all that a training needs to go on, its "
                f"optimizer's and random states too{', in ' + str(self.args.output_dir) if wanted is True else ''}; "
                "RoadModel.from_pretrained takes its values alone"
            )
        return str(whole[-1])

    def _stored(self, examples: Sequence[Example], collator: Collator) -> PrefixCache | None:
        """What an earlier training kept, where it fits, or a new one; a new one takes the kept one's place, not its memory too."""
        kept = self._kept or Kept()
        if kept.cache is None or not kept.cache.fits(self.model, examples, collator):
            kept.cache = None
            kept.cache = build(
                self.model,
                examples,
                collator,
                memory=self._prefix_memory,
                folder=Path(self.args.output_dir or "."),
                quiet=self._quiet,
            )
            if kept.cache is not None and self._kept is not None:
                kept.cache.sign()
        return kept.cache

    def _forget_prefix(self, collator: Collator, pinned: bool) -> None:
        self.data_collator, self._prefix_cache = collator, None
        self.args.dataloader_pin_memory = pinned

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The mean over the tokens of the (accumulated) batch; notes each composition's share for the logs."""
        own = inputs["compose"]
        nll_of = self._prefix_cache.nll if self._prefix_cache else completion_nll
        nll, rows = nll_of(
            model, {**inputs, **self._with_companions(own)} if model.training else inputs
        )
        if num_items_in_batch is None:
            loss = nll.mean()
        else:
            loss = nll.sum() / num_items_in_batch
            if self.args.average_tokens_across_devices:
                loss = loss * self.accelerator.num_processes
        if model.training:
            per_row = torch.zeros(len(own), 2, device=nll.device)
            per_row.index_add_(0, rows, torch.stack([nll.detach(), torch.ones_like(nll)], dim=1))
            for composition, sums in zip(own, per_row, strict=True):
                self._sums[str(composition)].append(sums)
        return (loss, {"nll": nll}) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The loss, and for each row, padded with -100, the negative log-likelihoods of its completion's tokens, and the tokens."""
        loss, nll, labels = super().prediction_step(
            model, inputs, prediction_loss_only, ignore_keys
        )
        if nll is None or labels is None:
            return loss, nll, labels
        rows = inputs["places"][0].to(nll.device)
        counts = rows.bincount(minlength=len(inputs["compose"])).tolist()
        by_row = (
            nn.utils.rnn.pad_sequence(
                list(torch.split(each, counts)), batch_first=True, padding_value=-100
            )
            for each in (nll, labels)
        )
        return (loss, *by_row)  # type: ignore[return-value]

    def _with_companions(self, own: Sequence[str]) -> dict[str, Sequence[Any]]:
        """What acts and what learns in each row; drawn from torch's generator, which a resumed run restores."""
        if not self._companions:
            return {}
        acting: list[Any] = []
        for name, drawn in zip(own, torch.rand(len(own)).tolist(), strict=True):
            several = self._companions.get(str(name), [])
            # One draw says whether, and which one.
            place = (
                int(drawn / self._companion_rate * len(several))
                if self._companion_rate
                else len(several)
            )
            acting.append(several[place] if place < len(several) else name)
        return {"compose": acting, "learning": own}

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add each composition's mean loss since the last log."""
        if "loss" in logs:
            for composition, sums in sorted(self._sums.items()):
                total, count = torch.stack(sums).sum(0).tolist()
                logs[f"loss/{composition}"] = round(total / count, 4)
            self._sums.clear()
        super().log(logs, *args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> MixedLengthSampler:
        micro_batch, processes = self.args.train_batch_size, self.args.world_size
        return MixedLengthSampler(
            train_dataset if train_dataset is not None else self.train_dataset,
            micro_batch * self.args.gradient_accumulation_steps * processes,
            self.args.seed,
            processes=processes,
            micro_batch=micro_batch,
        )

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """The chosen optimizer (AdamW) over the interventions alone, without the weight decay that is its default."""
        if self.optimizer is None:
            optimizer_class, settings = (
                self.optimizer_cls_and_kwargs
                or self.get_optimizer_cls_and_kwargs(self.args, self.model)
            )
            self.optimizer = optimizer_class(
                self.model.trained_parameters(), **{**settings, "weight_decay": 0.0}
            )
            if self._constraints is not None:
                self._constraints.install(
                    self.optimizer, self.model.interventions, list(self.model.adapters.values())
                )
        return self.optimizer

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        del state_dict
        self.model.save_pretrained(Path(str(output_dir or self.args.output_dir)))

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        del model
        restore(self.model, read(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        """Trainer looks for a model.safetensors, which no RoadModel writes."""
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))

    def _save_rng_state(self, output_dir: str) -> None:
        """Every process writes its part here: also what is summed for the next line of the log, so that it is the same resumed."""
        super()._save_rng_state(output_dir)
        sums = {name: torch.stack(each).cpu() for name, each in self._sums.items() if each}
        kept = {
            "sums": sums,
            "loss": self._tr_loss.cpu(),
            "total": self._total_loss_scalar,
            "logged": self._globalstep_last_logged,
        }
        torch.save(kept, Path(output_dir) / log_state(self.args.process_index))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        file = None if checkpoint is None else Path(checkpoint) / log_state(self.args.process_index)
        if file is not None and file.is_file():
            kept = torch.load(file, map_location=self.args.device, weights_only=True)
            self._sums.clear()
            self._sums.update({name: list(each) for name, each in kept["sums"].items()})
            self._tr_loss, self._total_loss_scalar, self._globalstep_last_logged = (
                kept["loss"],
                kept["total"],
                kept["logged"],
            )


def together(
    road: RoadModel, companions: Mapping[str, str | Sequence[str]], rate: float
) -> dict[str, list[Composition]]:
    """For each composition its sums with its companions: what acts. Raises RoadError where they don't fit the model."""
    if not 0 <= rate <= 1:
        raise RoadError(
            f"companion_rate={quoted(rate)}: expected the share of the examples, from 0 to 1"
        )
    sums = {}
    for name, given in companions.items():
        own = Composition.parse(name, road.names)
        sums[name] = [
            Composition.parse(each, road.names)
            for each in ([given] if isinstance(given, str) else given)
        ]
        for place, beside in enumerate(sums[name]):
            strengths: dict[str, float] = defaultdict(float)
            for each, strength in [*own.terms, *beside.terms]:
                strengths[each] += strength
            acting = sums[name][place] = Composition.parse(strengths, road.names)
            lost = {each for each, _ in own.terms} - {each for each, _ in acting.terms}
            if lost:
                raise RoadError(
                    f"companion '{beside}' takes {listing(sorted(lost))} out of '{own}', which is to learn beside it: "
                    "expected one of other subspaces"
                )
        check_sums(list(road.interventions), sums[name])
        check_products(road.adapters, sums[name])
    return sums


def _check_arguments(
    args: TrainingArguments, given: Mapping[str, Any], *, constrained: bool
) -> None:
    """Raises RoadError for what Trainer takes and what would not act here, or not rightly."""
    refused = {
        "label_smoothing_factor": "the loss is the completions' own",
        "neftune_noise_alpha": "the base model is frozen, in its own mode",
        "gradient_checkpointing": "it computes the layers again, without the edit",
        "activation_checkpointing": "it computes the layers again, without the edit",
        "torch_compile": "compiled code does not see the edit",
        "use_liger_kernel": "it changes the caller's model for good",
        "push_to_hub": "Trainer would upload a model without the edit; expected RoadModel.push_to_hub afterwards",
        "auto_find_batch_size": "it would start again from values that are trained already; expected a smaller batch",
    }
    for name, why in refused.items():
        if getattr(args, name, None):
            raise RoadError(
                f"{name}={quoted(getattr(args, name))} can't be used in a RoadTrainer: {why}"
            )
    if given.get("compute_loss_func") is not None:
        raise RoadError(
            "compute_loss_func would not be called in a RoadTrainer: expected to override compute_loss"
        )
    optimizer = (given.get("optimizers") or (None, None))[0]
    if optimizer is not None and constrained:
        raise RoadError(
            "constraints act around the steps of the trainer's own optimizer: expected no optimizers"
        )
    if optimizer is not None and any(group.get("weight_decay") for group in optimizer.param_groups):
        raise RoadError(
            "the optimizer's weight_decay pulls α toward 0, not toward the identity: expected 0"
        )


_ACCELERATES = ("forward", "_original_forward")


@contextmanager
def unchanged(road: RoadModel) -> Iterator[None]:
    """What Trainer and accelerate set on a model is as before afterwards: modes, configurations, a forward in half precision."""
    modes = {module: module.training for module in road.modules()}
    own = {name: vars(road)[name] for name in _ACCELERATES if name in vars(road)}
    configs = [
        config
        for config in (getattr(road.model, name, None) for name in ("config", "generation_config"))
        if config
    ]
    settings = [dict(vars(config)) for config in configs]
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for name in _ACCELERATES:
            vars(road).pop(name, None)
        vars(road).update(own)
        for config, before in zip(configs, settings, strict=True):
            for name in set(vars(config)) - set(before):
                delattr(config, name)
            for name, value in before.items():
                if vars(config).get(name, config) is not value:
                    setattr(config, name, value)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Nothing of `model` asks for gradients inside; afterwards, what did does again."""
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)
