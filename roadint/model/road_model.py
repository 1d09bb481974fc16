"""RoadModel: a transformers model with interventions and adapters, and a composition a row."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase
from typing_extensions import Unpack

from roadint.adapters.adapter import RoadAdapter
from roadint.adapters.making import AdapterArguments, make_adapter
from roadint.adapters.merging import Merged, merge
from roadint.architecture.layers import find_layers, is_after
from roadint.architecture.properties import check_model, counts_padding, input_device, positions_of
from roadint.checkpoint.content import Checkpoint
from roadint.checkpoint.reading import labelled_checkpoints, read_for
from roadint.checkpoint.writing import save
from roadint.data.prompts import (
    Prompt,
    Template,
    batch_prompts,
    check_template,
    check_tokenizer,
    generation_inputs,
    listed_prompts,
)
from roadint.engines.adapters import Adapters
from roadint.engines.attached import Attached, Compose
from roadint.engines.call import Source
from roadint.engines.interventions import Interventions, listed_interventions
from roadint.engines.locks import Gate, Lock
from roadint.engines.table import Tables
from roadint.engines.transformers.compiled.compiled import Compiled
from roadint.engines.transformers.generation import (
    check_room,
    generation_settings,
)
from roadint.engines.transformers.inputs import (
    Prompts,
    shape_of,
    tokens_of,
    with_names,
    with_own_positions,
)
from roadint.engines.transformers.partial import Resumed
from roadint.engines.transformers.run import (
    read_sources,
    run_collect,
    run_forward,
    run_generate,
)
from roadint.engines.transformers.states import Mode, States, sources_of
from roadint.errors import RoadError, listing, quoted
from roadint.grammar.composition import ALL, Composition, CompositionLike
from roadint.grammar.position import PositionLike
from roadint.grammar.subspace import check_label
from roadint.interventions.base import SubspaceIntervention
from roadint.model.description import describe
from roadint.model.hosted import Hosted, as_tokens, shows_model_arguments
from roadint.model.saving import base_model_of, chosen_adapters, upload

if TYPE_CHECKING:
    from typing_extensions import Self

PAPER_DECODING = {
    "do_sample": False,
    "repetition_penalty": 1.1,
    "no_repeat_ngram_size": 5,
    "max_new_tokens": 128,
}
"""How `RoadModel.answer` decodes where the caller says nothing: greedily, with mild penalties,
as the paper's notebook does (with 128 to 512 new tokens)."""


class RoadModel(Hosted):
    """A model with interventions at its hidden states and adapters on its linear layers.

    Every row of a batch has its own composition. The model is the caller's: it is never copied, and
    only `merge` changes it.

    Args:
        model: A transformers model: decoder-only, or an encoder with a head.
        interventions: Edits of hidden states; one without a width gets the model's.
        capacity: How many compositions of adapters are kept lowered; the least recently used one
            makes room for a new one.

    Attributes:
        interventions: The interventions, in the order in which they act.
        adapters: The adapters on linear layers, by name; see `add_adapter`.
        template: How `answer` and `describe` make a prompt of an instruction. Training sets it, and
            checkpoints keep it.
        training_summary: The summary of the training, which checkpoints keep.

    Raises:
        RoadError: where a layer, a component or a width does not fit the model.
    """

    interventions: Interventions
    adapters: Adapters

    def __init__(
        self,
        model: nn.Module,
        interventions: SubspaceIntervention | Sequence[SubspaceIntervention] = (),
        *,
        capacity: int = 1024,
    ) -> None:
        super().__init__()
        check_model(model)
        self.model = model
        self.interventions = Interventions.on(model, listed_interventions(interventions))
        self.adapters = Adapters(tables=Tables(capacity))
        self.template: Template = "plain"
        self.training_summary: dict[str, Any] = {}
        self._gate = Gate()
        self._changing = Lock()
        self._counts_padding = counts_padding(model)
        self._compiled: Compiled | None = None
        self.register_load_state_dict_post_hook(Hosted.without_model)  # type: ignore[no-untyped-call]

    # What is on the model

    @property
    def names(self) -> list[str]:
        """The names that a composition may use: subspaces, and adapters that are not merged."""
        return self._attached().names

    @property
    def labels(self) -> set[str]:
        """The labels of the checkpoints on the model; "" stands for what has none."""
        return self.interventions.labels | self.adapters.labels

    @property
    def trainable_count(self) -> int:
        """How many numbers train, in all interventions and adapters."""
        return self.interventions.trainable_count + self.adapters.trainable_count

    @property
    def device(self) -> torch.device:
        """The device on which the model takes its inputs."""
        return input_device(self.model)

    def trained_parameters(self) -> list[nn.Parameter]:
        """The parameters of interventions and adapters, for an optimizer."""
        return [*self.interventions.parameters(), *self.adapters.parameters()]

    def compositions(self) -> list[Composition]:
        """The compositions to compare: none, every name alone and, of more than one name, all."""
        names = self.names
        texts = [None, *names, *([ALL] if len(names) > 1 else [])]
        return [Composition.parse(text, names) for text in texts]

    def untouched_layers(self) -> int:
        """How many of the lowest layers no intervention or adapter can change."""
        lowest = [
            intervention.layer + (intervention.component == "block_output")
            for intervention in self.interventions
        ]
        if self.adapters:
            path, layers = find_layers(self.model)
            prefixes = [f"{path}.{index}." for index in range(len(layers))]
            for adapter in self.adapters.values():
                heads = [head for head in adapter.head_paths if not is_after(self.model, head)]
                for target in (*adapter.layout.paths, *heads):
                    inside = (i for i, prefix in enumerate(prefixes) if target.startswith(prefix))
                    lowest.append(next(inside, 0))
        return min(lowest, default=0)

    # Calls

    @shows_model_arguments
    def forward(
        self,
        *args: Any,
        compose: Compose = ALL,
        learning: Compose = ALL,
        prompt_length: Int[Tensor, " rows"] | None = None,
        positions: PositionLike | None = None,
        sources: Sequence[Source | None] | None = None,
        resumed: Resumed | None = None,
        **inputs: Any,
    ) -> Any:
        """The model's own forward, with its own output class, and a composition a row.

        Args:
            args: The model's own arguments in their order: input_ids, attention_mask, …
            compose: One composition for all rows, or a list of one a row; None is the base model,
                bit for bit. By default all subspaces and adapters act.
            learning: The blocks that get a row's gradient, as a composition for all rows or one a
                row; the other blocks of `compose` act without gradients.
            prompt_length: How many of a row's tokens are the prompt; the rest counts as generated.
                All by default, so that "last" is the last token that the mask keeps.
            positions: Where all interventions act, in place of their own positions: a position for
                all rows, or for each row a list of token indices.
            sources: For each intervention (a RoadInterchange) the states that it takes, as
                `collect` returns them, or for each row one state, [width], for all edited tokens,
                generated ones too; None where it takes nothing.
            resumed: The hidden states that some of the lowest layers return; those layers do not
                run.
            inputs: The model's arguments by name: input_ids or inputs_embeds [rows, columns],
                attention_mask [rows, columns with those in the cache] (all ones by default; ids
                that are padded need one), … A model with a table of positions gets position_ids as
                in `generate` where the mask shows padding on the left.

        Returns:
            The model's own output.

        Raises:
            RoadError: for a composition or a mask that does not fit, and where an edit could not
                act.
        """
        inputs = with_names(self.model, args, inputs)
        about = {
            "learning": learning,
            "prompt_length": prompt_length,
            "positions": positions,
            "sources": sources,
            "resumed": resumed,
        }
        if torch.compiler.is_compiling():
            return self._uncompiled(inputs, compose, **about)
        return self._run(inputs, compose, **about)

    def _run(self, inputs: dict[str, Any], compose: Compose, **about: Any) -> Any:
        scored = inputs.pop("_scored", None)
        with self._gate.call():
            inputs = self._with_positions(inputs)
            attached = self._attached()
            about |= {"scored": scored, "compiled": self._compiled}
            return run_forward(self.model, attached, inputs, compose, **about)

    # torch.compile(road) can't trace this; the model inside may be compiled.
    _uncompiled = torch.compiler.disable(_run)  # type: ignore[no-untyped-call]

    def token_nll(
        self, where: Int[Tensor, "2 tokens"], labels: Int[Tensor, " tokens"], **arguments: Any
    ) -> Float[Tensor, " tokens"]:
        """The negative log-likelihood of some tokens; no other logits are computed or kept.

        Args:
            where: Rows and columns of tokens.
            labels: The ids of the tokens that come after them.
            arguments: As in `forward`: input_ids, attention_mask, compose, …

        Returns:
            Nats, float32.

        Raises:
            RoadError: as `forward`, and for places or labels outside of the call.
        """
        return self(**arguments, _scored=(where, labels))  # type: ignore[no-any-return]

    def generate(
        self,
        inputs: Int[Tensor, "rows columns"] | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        compose: Compose = ALL,
        sources: Sequence[Source | None] | None = None,
        **generation: Any,
    ) -> Any:
        """The model's own `generate`, with a composition a row: same arguments, same result.

        Beams and returned sequences share their row's composition and sources. After `compile`, the
        decode is a compiled graph; a model that was compiled otherwise runs uncompiled where
        something composes. Tokens in a cache that is handed over are as the call that filled it
        left them: no edit acts on them again.

        Args:
            inputs: The tokens, as in transformers; or input_ids, padded on the left where rows
                differ, with their attention_mask.
            generation_config: As in transformers.
            compose: As in `forward`.
            sources: As in `forward`.
            generation: Other arguments of transformers' `generate`, with its defaults.

        Returns:
            What the model's own `generate` returns.

        Raises:
            RoadError: as `forward`, and for guidance_scale, whose passes run on other tokens, and
                a paged cache, which packs rows.
        """
        arguments = as_tokens(inputs, generation)
        if generation_config is not None:
            arguments["generation_config"] = generation_config
        with self._gate.call():
            attached = self._attached()
            return run_generate(
                self.model, attached, arguments, compose, sources, compiled=self._compiled
            )

    def answer(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Prompt | Sequence[Prompt],
        compose: Compose = ALL,
        *,
        template: Template | None = None,
        sources: Sequence[Source | None] | None = None,
        **generation: Any,
    ) -> list[str]:
        """Answer prompts in one batch, with one composition a row.

        Args:
            tokenizer: The model's.
            prompts: Instructions, or mappings of "instruction", "input" and "history", the turns
                before; a single one is answered once for every composition.
            compose: As in `forward`.
            template: In place of the model's.
            sources: As in `forward`.
            generation: Settings of transformers' `generate`. Others are those of a
                `generation_config` among them or, without one, of `PAPER_DECODING`.

        Returns:
            The answers without the prompts, one a row (times num_return_sequences).

        Raises:
            RoadError: for bad input.
        """
        if isinstance(prompts, (str, Mapping)):
            prompts = listed_prompts(prompts) * (
                len(compose) if isinstance(compose, (list, tuple)) else 1
            )
        chosen = self._template(tokenizer, template)
        batch = generation_inputs(tokenizer, chosen, listed_prompts(prompts))
        columns = batch["input_ids"].shape[1]
        settings = generation_settings(tokenizer, self.model, generation, PAPER_DECODING)
        settings = check_room(settings, generation, columns, positions_of(self.model))
        inputs = {name: tensor.to(self.device) for name, tensor in batch.items()}
        arguments: dict[str, Any] = {**inputs, **settings}
        tokens = self.generate(compose=compose, sources=sources, **arguments)
        tokens = tokens if torch.is_tensor(tokens) else tokens.sequences
        texts = tokenizer.batch_decode(tokens[:, columns:], skip_special_tokens=True)
        return [str(text).strip() for text in texts]

    def collect(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        prompts: Prompts,
        positions: PositionLike | None = None,
        *,
        template: Template | None = None,
    ) -> States:
        """The model's own hidden states where the interventions act.

        No layer above the highest site runs.

        Args:
            tokenizer: The model's; None where the prompts are tokens.
            prompts: Instructions, or tokens: {"input_ids": [rows, columns], "attention_mask": …}.
            positions: As in `forward`.
            template: In place of the model's.

        Returns:
            For each intervention and each prompt, [tokens, width].

        Raises:
            RoadError: for bad input.
        """
        with self._gate.call():
            interventions = self._attached().interventions
            inputs = self._tokens(tokenizer, prompts, template)
            return run_collect(self.model, interventions, inputs, positions)

    def interchange(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        base: Prompts,
        source: Prompts | Sequence[Prompts | None],
        *,
        compose: Compose = ALL,
        positions: PositionLike | None = None,
        source_positions: PositionLike | None = None,
        mode: Mode = "parallel",
        template: Template | None = None,
    ) -> Any:
        """The output for `base`, into which every RoadInterchange has put its part of `source`.

        Other interventions act on the base alone.

        Args:
            tokenizer: The model's; None where the prompts are tokens.
            base: Prompts, or tokens (see `collect`).
            source: As many prompts, for all interchanges. Or a list with prompts for every
                interchange, in the order of the interventions; None where one takes nothing.
            compose: As in `forward`.
            positions: Where states are put into the base; by default the interventions' own.
            source_positions: Where states are taken from, in order; by default as `positions`.
            mode: "parallel": all sources run unedited. "serial": a source runs with the states of
                the one before it put in, and those of the last are put into the base, as in
                pyvene's mode of that name.
            template: In place of the model's.

        Returns:
            What `forward` returns, with padding on the left.

        Raises:
            RoadError: for bad input.
        """
        attached = self._attached()
        inputs = self._tokens(tokenizer, base, template)
        rows = shape_of(inputs)[0]
        prompts = sources_of(attached.interventions, source)
        where = (positions, source_positions)

        def inputs_of(asked: Prompts) -> dict[str, Any]:
            return self._tokens(tokenizer, asked, template)

        with self._gate.call():
            taken = read_sources(
                self.model, attached, compose, prompts, inputs_of, rows, mode, *where
            )
            if list(self.interventions) != list(attached.interventions):
                raise RoadError(
                    "interventions came or went while the sources were read: expected the same "
                    "ones; call again"
                )
            return self(compose=compose, positions=positions, sources=taken, **inputs)

    def compile(self, **options: Any) -> None:
        """Run calls as a compiled graph, in which the edits are operations.

        One graph serves any mixture of compositions, strengths and adapters, in any order of rows;
        adapters may come and go. Only a target or a site that no edit had before makes a new one.
        `generate` uses a static cache and, on a GPU, CUDA graphs. Rows of a batch that compose
        nothing are untouched in it; a batch of such rows alone is the caller's model as it is.

        What can't be part of the graph runs uncompiled, and the log says why: interventions that
        are no rotations, interchanges, adapters with a LoRA or a head, gradients (of the model,
        too), hooks on its modules, several devices, offloaded weights, and hidden states or
        attentions as outputs. Calls of several threads run one after another.

        Args:
            options: Those of torch.compile: backend, mode, dynamic, fullgraph, options. `generate`
                takes mode "reduce-overhead" by default, which is CUDA graphs.

        Raises:
            RoadError: for an option that torch.compile does not have.

        Examples:
            >>> road.compile()  # doctest: +SKIP
            >>> road.generate(**inputs, compose=["german", None, "0.5*english"])  # doctest: +SKIP
        """
        self._compiled = Compiled(options)

    def describe(
        self, tokenizer: PreTrainedTokenizerBase, prompt: str, template: Template | None = None
    ) -> str:
        """The interventions, and a prompt with its edited tokens marked, as text."""
        chosen = self._template(tokenizer, template)
        ids = batch_prompts(tokenizer, chosen, [prompt])["input_ids"][0].tolist()
        return describe(list(self.interventions), [str(tokenizer.decode([token])) for token in ids])

    def running(self) -> AbstractContextManager[None]:
        """A context in which adapters can be neither merged nor unmerged, as in a call.

        For work that takes many calls, such as a training.
        """
        return self._gate.call()

    # Adapters

    def add_adapter(self, name: str = "road", **arguments: Unpack[AdapterArguments]) -> RoadAdapter:
        """Put a new adapter, which changes nothing yet, on the outputs of linear layers.

        Args:
            name: The adapter's name in compositions.
            arguments: Targets, exclude and layers (which layers; all of the language model's by
                default), heads, variant, pairing, subspace, lora_rank, lora_alpha; see
                `roadint.adapters.making.AdapterArguments`.

        Raises:
            RoadError: where something does not fit.
        """
        adapter = make_adapter(self.model, name, **arguments)
        self.attach([adapter])
        return adapter

    def load_adapter(self, name_or_path: str | Path, name: str | None = None) -> RoadAdapter:
        """Put the adapter of a checkpoint on the model.

        A model on which nothing was before also takes the checkpoint's template of prompts, unless
        one was set.

        Args:
            name_or_path: A folder or hub id whose checkpoint has a single adapter; one with more
                goes through `add_checkpoint`.
            name: In place of the name that it was saved with.

        Raises:
            RoadError: where it does not fit the model or the template, or the name is taken;
                nothing has changed.
        """
        saved = read_for(self.model, name_or_path)
        adapter = saved.single_adapter(self.model, name)
        with self._changing:
            template = self._template_with(saved, name_or_path)
            self._put([adapter])
            self.template = template
        return adapter

    def attach(self, adapters: Sequence[RoadAdapter]) -> None:
        """Put existing adapters on the model.

        Raises:
            RoadError: where a name is taken; none is attached then.
        """
        with self._changing:
            self._put(adapters)

    def remove_adapter(self, name: str) -> None:
        """Remove an adapter.

        Raises:
            RoadError: where there is none of that name, or adapters are merged.
        """
        self._check_unmerged([name])
        self.adapters.named(name)
        with self._changing:
            self.adapters = self.adapters.without([name])

    def _check_unmerged(self, leaving: list[str]) -> None:
        if (merged := self.adapters.merged) and leaving:
            raise RoadError(
                f"adapters are merged into the weights, as '{merged.composition}': unmerge() "
                "before one is removed"
            )

    def merge(self, compose: CompositionLike = ALL, *, keep: bool = False) -> Merged:
        """Merge a composition of adapters into the model's weights (paper section 3.2).

        It works in place, on a few matrix rows at a time; until `unmerge` nothing can be composed.
        Weighted sums of RoAd1 are products; an adapter's head replaces the model's.

        Args:
            compose: A composition of adapters alone; "all" is all of them.
            keep: Keep a copy of the weights, so that `unmerge` is exact; without one, the inverse
                rotations restore them up to rounding in their dtype.

        Returns:
            What was merged, and how much of it the weights' dtype rounds away. A warning says
            where that is much.

        Raises:
            RoadError: for edits of hidden states, quantised or shared weights, what does not
                commute, and while calls run; nothing has changed.
        """
        with self._gate.change("merging adapters into the weights"):
            adapters = self.adapters
            composition = adapters.mergeable(compose, self.names)
            merged = merge(self.model, adapters, composition, keep)
            with self._changing:
                self.adapters = self.adapters.with_merged(merged)
            return merged

    def unmerge(self) -> None:
        """Take merged adapters out of the weights again.

        Raises:
            RoadError: where none are merged, or calls run on them.
        """
        with self._gate.change("taking adapters out of the weights"):
            self._unmerge()

    @contextmanager
    def merged(self, compose: CompositionLike = ALL) -> Iterator[nn.Module]:
        """A context in which adapters are merged; it gives the model.

        Afterwards the weights are exactly as before, also after an exception. The end of the
        context waits for the calls that run.
        """
        self.merge(compose, keep=True)
        try:
            yield self.model
        finally:
            with self._gate.change("taking adapters out of the weights", wait=True):
                self._unmerge()

    def _unmerge(self) -> None:
        if not self.adapters.merged:
            raise RoadError("no adapters are merged: expected merge() before unmerge()")
        self.adapters.merged.undo()
        with self._changing:
            self.adapters = self.adapters.with_merged(None)

    # Checkpoints

    def save_pretrained(
        self, folder: str | Path, adapters: str | Sequence[str] | None = None
    ) -> None:
        """Write interventions and adapters (not the model) as a checkpoint of a few kB.

        Args:
            folder: Where to. A checkpoint that is there stays whole until the new one is.
            adapters: Write these adapters only, and no interventions; everything by default.

        Raises:
            RoadError: for a folder that can't be written, and for unknown adapters.
        """
        about = {"base_model": base_model_of(self.model), "template": self.template}
        about["training"] = self.training_summary
        if adapters is None:
            everything = list(self.adapters.values())
            save(folder, list(self.interventions), about, everything)
            return
        save(folder, [], about, chosen_adapters(self.adapters, adapters))

    @classmethod
    def from_pretrained(
        cls,
        model: nn.Module,
        name_or_path: str | Path | Mapping[str, str | Path],
        *,
        revision: str | None = None,
        token: str | None = None,
    ) -> "Self":
        """Put a checkpoint onto its base model.

        Args:
            model: The base model.
            name_or_path: A folder or hub id; or label → folder or hub id, to compose across
                checkpoints (see `add_checkpoint`).
            revision: A branch, tag or commit of the hub's repository.
            token: The access token of the hub.

        Raises:
            RoadError: where it does not fit the model or is damaged.
        """
        (label, first), *others = labelled_checkpoints(name_or_path)
        saved = read_for(model, first, revision, token)
        road = cls(model, saved.interventions(label))
        road.attach(saved.adapters(model, label))
        road.template = check_template(saved.config["template"])
        road.training_summary = saved.config["training"]
        for label, source in others:
            road.add_checkpoint(source, str(label), revision=revision, token=token)
        return road

    def add_checkpoint(
        self,
        name_or_path: str | Path,
        label: str,
        *,
        revision: str | None = None,
        token: str | None = None,
    ) -> None:
        """Load another checkpoint onto the model.

        Sums across checkpoints (`german@a + english@b`, `a - b`) act on disjoint blocks for all
        variants, and on shared blocks for RoAd1, as the product. A model on which nothing was
        before also takes the checkpoint's template of prompts, unless one was set.

        Args:
            name_or_path: A folder or hub id.
            label: Compositions use its names as "name@label", and all of them as "label".
            revision: A branch, tag or commit of the hub's repository.
            token: The access token of the hub.

        Raises:
            RoadError: where it does not fit the model, the template or the label; nothing has
                changed.
        """
        check_label(label)
        self._check_free(label)
        saved = read_for(self.model, name_or_path, revision, token)
        adapters = saved.adapters(self.model, label)
        interventions = Interventions.on(self.model, saved.interventions(label))
        with self._changing:
            self._check_free(label)  # another thread may have loaded one meanwhile
            template = self._template_with(saved, name_or_path)
            self.adapters = self.adapters.plus(self.model, adapters)
            self.interventions = self.interventions.plus(interventions)
            self.template = template

    def remove_checkpoint(self, label: str) -> None:
        """Remove what `add_checkpoint` or `from_pretrained` loaded as `label`.

        Raises:
            RoadError: where there is no such label, or it has adapters and some are merged.
        """
        if not isinstance(label, str) or not label or label not in self.labels:
            raise RoadError(
                f"no checkpoint {quoted(label)} to remove: the names are {listing(self.names)}"
            )
        names = [name for name in self.adapters if name.partition("@")[2] == label]
        self._check_unmerged(names)
        with self._changing:
            self.interventions = self.interventions.without(label)
            self.adapters = self.adapters.without(names)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        token: str | None = None,
        report: Mapping[str, Any] | None = None,
    ) -> str:
        """Upload the checkpoint with a model card to the hub.

        `roadint push` does the same with a checkpoint's folder, and adds a picture.

        Args:
            repo_id: The repository; it is made where there is none.
            private: Whether a new repository is private.
            token: The access token of the hub.
            report: `dataclasses.asdict` of what `roadint.evaluate` gave, for the card.

        Returns:
            The address of the commit.
        """
        return upload(self.save_pretrained, repo_id, report, private=private, token=token)

    # Inside

    def _put(self, adapters: Sequence[RoadAdapter]) -> None:
        taken = {*self.interventions.names, *self.labels}
        self.adapters = self.adapters.plus(self.model, adapters, taken)

    def _check_free(self, label: str) -> None:
        names = Attached(self.interventions, self.adapters).names  # the lock may be held already
        if label in self.labels or label in names:
            raise RoadError(
                f"label {quoted(label)} is taken: expected another one than {listing(names)}"
            )

    def _template_with(self, saved: Checkpoint, source: str | Path) -> Template:
        """The template with a checkpoint beside what is here."""
        template = check_template(saved.config["template"])
        is_first = not (len(self.interventions) or len(self.adapters))
        if is_first and "plain" in (template, self.template):  # which is what nobody has said
            return template if self.template == "plain" else self.template
        if template != self.template:
            raise RoadError(
                f"{source} was trained with template {quoted(template)}, this one with "
                f"{self.template!r}: expected the same, as road.template was when they were saved"
            )
        return template

    def _attached(self) -> Attached:
        """The interventions and adapters of this moment."""
        with self._changing:
            return Attached(self.interventions, self.adapters)

    def _tokens(
        self, tokenizer: PreTrainedTokenizerBase | None, prompts: Prompts, template: Template | None
    ) -> dict[str, Tensor]:
        chosen = self.template if template is None else template
        return self._with_positions(tokens_of(tokenizer, prompts, chosen, self.device))

    def _with_positions(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return with_own_positions(inputs) if self._counts_padding else inputs

    def _template(self, tokenizer: PreTrainedTokenizerBase, template: Template | None) -> Template:
        check_tokenizer(tokenizer)
        return check_template(self.template if template is None else template, tokenizer)
