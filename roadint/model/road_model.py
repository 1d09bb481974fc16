"""RoadModel: a transformers model with interventions and adapters, and a composition for each row of the batch."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from roadint.adapters.merging import Merged, merge
from roadint.adapters.products import check_products
from roadint.architecture.layers import text_config
from roadint.architecture.properties import check_recomputation, counts_padding, positions_of
from roadint.data.prompts import (
    Template,
    batch_prompts,
    check_template,
    check_tokenizer,
    generation_inputs,
    listed_prompts,
)
from roadint.engines.transformers.generation import (
    check_generation,
    check_room,
    drafts,
    generation_settings,
)
from roadint.engines.transformers.hidden_edit import Edit, Source
from roadint.engines.transformers.inputs import (
    Prompts,
    check_prompt_length,
    check_scored,
    is_padded,
    kept_tokens,
    shape_of,
    tokens_of,
    with_names,
    with_own_positions,
)
from roadint.engines.transformers.linear_edit import LinearEdit
from roadint.engines.transformers.partial import Resumed
from roadint.engines.transformers.passes import Acting, Passes, edited
from roadint.engines.transformers.scoring import score
from roadint.engines.transformers.states import Mode, gather, read
from roadint.engines.transformers.view import Copy, write_back
from roadint.errors import RoadError, listing, quoted
from roadint.grammar.composition import ALL, Composition, CompositionLike, parse_rows
from roadint.grammar.position import Position, PositionLike, Tokens, parse_positions
from roadint.interventions.base import SubspaceIntervention
from roadint.interventions.sums import check_sums
from roadint.model.description import describe
from roadint.model.hosted import as_tokens, shows_model_arguments
from roadint.model.roads import Placed, Roads

Compose = CompositionLike | Sequence[CompositionLike]
PAPER_DECODING = {
    "do_sample": False,
    "repetition_penalty": 1.1,
    "no_repeat_ngram_size": 5,
    "max_new_tokens": 128,
}
"""The paper's decoding, for `generate`: greedy, with mild penalties (its notebook; 128 to 512 new tokens)."""


class RoadModel(Roads):
    """Interventions at the hidden states of a transformers model, RoadInterventions above all, and adapters on its linear layers.

    model: the model, which stays the caller's: never changed, never copied. interventions: where it is edited; one without a
    width gets the model's. Adapters come by `add_adapter` and `load_adapter`. capacity: how many compositions of adapters are held
    ready; the one that was not used for longest makes room for a new one.
    Raises RoadError where a layer, a component or a width does not fit the model.

    template: how `generate` and `describe` turn an instruction into a prompt; training sets it, a checkpoint keeps it.
    training_summary: what a checkpoint tells of its training.
    """

    def __init__(
        self,
        model: nn.Module,
        interventions: SubspaceIntervention | Sequence[SubspaceIntervention] = (),
        *,
        capacity: int = 1024,
    ) -> None:
        super().__init__(model, interventions, capacity=capacity)
        self._counts_padding = counts_padding(model)

    @shows_model_arguments
    def forward(
        self,
        *args: Any,
        compose: Compose = ALL,
        learning: Compose = ALL,
        prompt_length: Tensor | None = None,
        positions: PositionLike | None = None,
        sources: Sequence[Source | None] | None = None,
        resumed: Resumed | None = None,
        **inputs: Any,
    ) -> Any:
        """The model's own forward, with its own output class, and a composition a row.

        Args:
            args: the model's own, in its own order: input_ids, attention_mask, …
            compose: one composition for all rows, or a list of one a row; None is the base model, bit for bit.
            learning: the blocks that get a row's gradient, as a composition for all rows or one a row; the others act all the same.
            prompt_length: [rows] int, how many of a row's kept tokens are the prompt; the rest counts as generated. All by default,
                so that "last" is the last token that the mask keeps.
            positions: where, instead of the interventions' own: a position for all rows, or a list of token indices for each.
            sources: for each intervention, what it takes (RoadInterchange), as `collect` returns it, or for each row one state,
                [width], for all of its edited tokens, generated ones too; None where it takes nothing.
            resumed: the hidden states that some of the lowest layers are known to give: those layers do not run.
            inputs: the model's keyword arguments; input_ids or inputs_embeds [rows, columns], attention_mask [rows, columns with
                those in the cache] (all ones by default; ids that are padded need one). Where a model looks positions up in a table
                and the mask shows padding on the left, it gets the position_ids that `generate` would give it.

        Returns:
            The model's own output.

        Raises:
            RoadError: for a composition or a mask that does not fit, and where an edit could not act.
        """
        run = self._uncompiled if torch.compiler.is_compiling() else self._run
        inputs = with_names(self.model, args, inputs)
        scored = inputs.pop("_scored", None)
        return run(compose, learning, prompt_length, scored, positions, sources, resumed, inputs)

    def token_nll(self, where: Tensor, labels: Tensor, **arguments: Any) -> Tensor:
        """The negative log-likelihood of chosen tokens; the head runs there alone, and no logits are kept.

        Args:
            where: [2, tokens] int, rows and columns.
            labels: [tokens] int, what comes after each of these places.
            arguments: as in `forward`: input_ids=…, attention_mask=…, compose=… and the rest.

        Returns:
            [tokens] float32, nats.

        Raises:
            RoadError: as `forward`, and for places or labels outside of the call.
        """
        return self(**arguments, _scored=(where, labels))  # type: ignore[no-any-return]

    def _run(
        self,
        compose: Compose,
        learning: Compose,
        prompt_length: Tensor | None,
        scored: tuple[Tensor, Tensor] | None,
        positions: PositionLike | None,
        sources: Sequence[Source | None] | None,
        resumed: Resumed | None,
        inputs: dict[str, Any],
    ) -> Any:
        rows, columns = shape_of(inputs)
        if scored is not None:
            check_scored(scored, rows, columns, int(text_config(self.model).vocab_size))
        if self._counts_padding:
            inputs = with_own_positions(inputs)
        with self._gate.call():
            placed = self._placed()
            compositions = self._parse(placed, compose, rows)
            learned = (
                None
                if isinstance(learning, str) and learning == ALL
                else parse_rows(learning, rows, placed.names)
            )
            if resumed is not None and not isinstance(resumed, Resumed):
                raise RoadError(
                    f"resumed={quoted(resumed)}: expected a roadint.engines.transformers.partial.Resumed, or None"
                )
            copies: list[Copy] = []
            plain = self.model if resumed is None else resumed.of(self.model)
            model = plain
            if any(composition.terms for composition in compositions):
                check_recomputation(self.model)
                kept = kept_tokens(inputs, self.model, self.device)
                length = check_prompt_length(prompt_length, kept)
                edits = self._edits(
                    placed, compositions, kept, length, learned, _places(positions), sources
                )
                passes = Passes(kept.shape[1])
                model = edited(plain, edits, passes, copies)
            output = (
                model(**inputs)
                if scored is None
                else score(model, inputs, *scored, plain=self.model)
            )
            if model is not plain:
                passes.check()
                write_back(copies)
            return output

    # In torch.compile(road), which would trace what is Python's business here; the model inside may be compiled itself.
    _uncompiled = torch.compiler.disable(_run)  # type: ignore[no-untyped-call]

    def generate(
        self,
        inputs: Tensor | None = None,
        *,
        compose: Compose = ALL,
        sources: Sequence[Source | None] | None = None,
        **generation: Any,
    ) -> Any:
        """The model's own `generate`, with a composition a row: same arguments, same result.

        input_ids [rows, columns], padded on the left where rows differ, with their attention_mask. Beams and returned
        sequences share their row's composition and sources. Compiled models and caches run uncompiled where something composes.
        Raises RoadError as `forward` does, and for guidance_scale, whose passes run on other tokens.
        """
        given = as_tokens(inputs, generation)
        rows, columns = shape_of(given)
        with self._gate.call():
            placed = self._placed()
            compositions = self._parse(placed, compose, rows)
            if not any(composition.terms for composition in compositions):
                return self.model.generate(**given)  # type: ignore[operator]
            check_generation(self.model, given)
            kept = given.get("attention_mask")
            if kept is None:
                ids = given.get("input_ids")
                padded = is_padded({"input_ids": ids}, self.model)
                ones = torch.ones(rows, columns, dtype=torch.long, device=self.device)
                kept = (
                    (ids != text_config(self.model).pad_token_id).long()
                    if padded and ids is not None
                    else ones
                )
                given["attention_mask"] = kept
            kept = kept_tokens(
                {"input_ids": torch.empty(rows, columns), "attention_mask": kept},
                self.model,
                self.device,
            )
            with torch.no_grad():
                edits = self._edits(placed, compositions, kept, sources=sources, ahead=True)
                passes = Passes(drafted=drafts(self.model, given))
                copies: list[Copy] = []
                output = edited(self.model, edits, passes, copies).generate(
                    **given, disable_compile=True
                )  # type: ignore[operator]
                passes.check()
                write_back(copies)
                return output

    def answer(
        self,
        tokenizer: Any,
        prompts: str | Sequence[str],
        compose: Compose = ALL,
        *,
        template: Template | None = None,
        sources: Sequence[Source | None] | None = None,
        **generation: Any,
    ) -> list[str]:
        """Answer prompts in one batch, each through its own composition.

        prompts: instructions; a single one is asked once for each composition. compose: as in `forward`.
        template: overrides the model's. sources: as in `forward`.
        generation: for transformers' `generate`: settings, or a generation_config. What they leave open is as in
        roadint.model.road_model.PAPER_DECODING or, beside a generation_config, as that says.
        Returns the answers, one a row (times num_return_sequences), without the prompts. Raises RoadError for bad input.
        """
        if isinstance(prompts, str):
            prompts = [prompts] * (len(compose) if isinstance(compose, (list, tuple)) else 1)
        prompts = listed_prompts(prompts)
        check_tokenizer(tokenizer)
        chosen = check_template(self.template if template is None else template, tokenizer)
        batch = generation_inputs(tokenizer, chosen, prompts)
        columns = batch["input_ids"].shape[1]
        settings = generation_settings(tokenizer, generation, PAPER_DECODING)
        settings = check_room(settings, generation, columns, positions_of(self.model))
        inputs = {name: tensor.to(self.device) for name, tensor in batch.items()}
        tokens = self.generate(compose=compose, sources=sources, **inputs, **settings)
        tokens = tokens if torch.is_tensor(tokens) else tokens.sequences
        return [
            str(text).strip()
            for text in tokenizer.batch_decode(tokens[:, columns:], skip_special_tokens=True)
        ]

    def collect(
        self,
        tokenizer: Any,
        prompts: Prompts,
        positions: PositionLike | None = None,
        *,
        template: Template | None = None,
    ) -> list[list[Tensor]]:
        """The model's own hidden states where the interventions act: for each of them and each prompt, [tokens, width].

        prompts: instructions, or tokens: {"input_ids": [rows, columns], "attention_mask": …}; positions: instead of the
        interventions' own, as in `forward`. No layer above the highest site runs. Raises RoadError for bad input.
        """
        with torch.no_grad(), self._gate.call():
            return self._read(self._placed(), self._tokens(tokenizer, prompts, template), positions)

    def interchange(
        self,
        tokenizer: Any,
        base: Prompts,
        source: Prompts | Sequence[Prompts | None],
        *,
        compose: Compose = ALL,
        positions: PositionLike | None = None,
        source_positions: PositionLike | None = None,
        mode: Mode = "parallel",
        template: Template | None = None,
    ) -> Any:
        """The model's output for `base`, into which every RoadInterchange has put its part of `source`.

        base: prompts, or tokens (see `collect`). source: as many, for all interchanges; or a list of such, one for each interchange
        in the order of the interventions, None where one takes nothing. Hidden states are taken at source_positions (by default
        where the base is edited) and put in place at positions (by default the interventions' own), in order.
        mode: "parallel": all sources run unedited. "serial": each source runs with what the one before it gave put in place, and
        the last is put into the base: a chain, as in pyvene's mode of that name. Other interventions act on the base alone.
        Logits and the rest are as `forward` returns them, with padding on the left. Raises RoadError for bad input.
        """
        placed = self._placed()
        takes = [site.takes_source for site in placed.sites]
        if not any(takes):
            raise RoadError("no intervention takes a source: expected a RoadInterchange among them")
        if not isinstance(source, (str, Mapping, list, tuple)):
            raise RoadError(
                f"source {quoted(source)}: expected prompts, or for each interchange prompts, tokens or None"
            )
        several = not isinstance(source, (str, Mapping)) and not all(
            isinstance(each, str) for each in source
        )
        given: list[Any] = list(source) if several else [source] * sum(takes)
        if len(given) != sum(takes):
            raise RoadError(
                f"{len(given)} sources for {sum(takes)} interchanges: expected one each, or prompts for all of them"
            )
        inputs = self._tokens(tokenizer, base, template)
        compositions = self._parse(placed, compose, shape_of(inputs)[0])

        def read_source(prompts: Prompts, taken: Sequence[Source | None]) -> list[list[Tensor]]:
            tokens = self._tokens(tokenizer, prompts, template)
            where = positions if source_positions is None else source_positions
            return self._read(placed, tokens, where, compositions, positions, taken)

        with self._gate.call():
            sources = gather(takes, given, mode, read_source)
            if self._placed().sites != placed.sites:
                raise RoadError(
                    "interventions came or went while the sources were read: expected the same ones; call again"
                )
            return self(compose=compositions, positions=positions, sources=sources, **inputs)

    def merge(self, compose: CompositionLike = ALL, *, keep: bool = False) -> Merged:
        """Put a composition of adapters into the model's own weights, which then run at no cost; nothing composes until `unmerge`.

        "all" is all adapters; weighted sums of RoAd1 are their product. keep: keep the weights as they were, so that `unmerge`
        is exact; else the inverse rotations bring them back to the dtype's rounding. A head takes the place of the model's.
        Works in place, two rows at a time. Warns where the weights' dtype rounds much of the change away.
        Raises RoadError, and changes nothing, for edits of hidden states, quantised or shared weights, and what does not commute.
        """
        with self._gate.change("merging adapters into the weights"):
            if self._merged:
                raise RoadError(
                    f"adapters are merged already, as '{self._merged.composition}': unmerge() first"
                )
            everything = isinstance(compose, str) and compose == ALL
            composition = Composition.parse(
                compose, list(self.adapters) if everything else self.names
            )
            for name, _ in composition.terms:
                if name not in self.adapters:
                    raise RoadError(
                        f"{quoted(name)} edits hidden states at some tokens, which no weights do: expected {listing(self.adapters)}"
                    )
            if not composition.terms:
                raise RoadError(
                    f"nothing to merge in {quoted(str(compose))}: expected a composition of adapters, of {listing(self.adapters)}"
                )
            check_products(self.adapters, [composition])
            self._merged = merge(self.model, self.adapters, composition, keep)
            return self._merged

    def unmerge(self) -> None:
        """Take merged adapters out of the weights again. Raises RoadError where none are merged, or calls run on them."""
        with self._gate.change("taking adapters out of the weights"):
            self._unmerge()

    def _unmerge(self) -> None:
        if not self._merged:
            raise RoadError("no adapters are merged: expected merge() before unmerge()")
        self._merged.undo()
        self._merged = None

    @contextmanager
    def merged(self, compose: CompositionLike = ALL) -> Iterator[nn.Module]:
        """The model with adapters merged, inside; its weights are exactly as before afterwards, also after an exception.

        The end waits for the calls that run.
        """
        self.merge(compose, keep=True)
        try:
            yield self.model
        finally:
            with self._gate.change("taking adapters out of the weights", wait=True):
                self._unmerge()

    def running(self) -> AbstractContextManager[None]:
        """Inside, as in any call, adapters are neither merged nor unmerged: for what takes several calls, such as a training."""
        return self._gate.call()

    def describe(self, tokenizer: Any, prompt: str, template: Template | None = None) -> str:
        """The sites, the subspaces and the prompt's tokens with the edited ones marked."""
        check_tokenizer(tokenizer)
        chosen = check_template(self.template if template is None else template, tokenizer)
        ids = batch_prompts(tokenizer, chosen, [prompt])["input_ids"][0]
        return describe(self.sites, [tokenizer.decode([token]) for token in ids.tolist()])

    def _tokens(
        self, tokenizer: Any, prompts: Prompts, template: Template | None
    ) -> dict[str, Tensor]:
        return tokens_of(
            tokenizer, prompts, self.template if template is None else template, self.device
        )

    def _read(
        self,
        placed: Placed,
        inputs: dict[str, Any],
        where: PositionLike | None,
        compositions: Sequence[Composition] = (),
        positions: PositionLike | None = None,
        taken: Sequence[Source | None] = (),
    ) -> list[list[Tensor]]:
        """The hidden states at the sites; the interchanges that have something in `taken` act in the pass."""
        if self._counts_padding:
            inputs = with_own_positions(inputs)
        kept = kept_tokens(inputs, self.model, self.device)
        edit = None
        if any(states is not None for states in taken):
            of_takers = {
                name for site in placed.sites if site.takes_source for name in site.partition
            }
            acting = [
                Composition(tuple(term for term in each.terms if term[0] in of_takers))
                for each in compositions
            ]
            edit = Edit(
                placed.sites,
                placed.paths,
                acting,
                kept,
                positions=_places(positions),
                sources=taken,
            )
        return read(self.model, placed.sites, placed.paths, inputs, kept, _places(where), edit)

    def _edits(
        self,
        placed: Placed,
        compositions: Sequence[Composition],
        kept: Tensor,
        prompt_length: Tensor | None = None,
        learning: Sequence[Composition] | None = None,
        positions: Position | Tokens | None = None,
        sources: Sequence[Source | None] | None = None,
        *,
        ahead: bool = False,
    ) -> list[Acting]:
        """What interventions and adapters do in a call, each row by its composition."""
        edits: list[Acting] = []
        if sources is not None and not isinstance(sources, (list, tuple)):
            raise RoadError(
                f"sources {quoted(sources)}: expected a list, for each intervention what collect returns, or None"
            )
        if sources is not None and len(sources) != len(placed.sites):
            raise RoadError(
                f"{len(sources)} sources for {len(placed.sites)} interventions: expected one each, None where none is taken"
            )
        if placed.sites:
            about = (prompt_length, learning, positions, sources)
            edits.append(Edit(placed.sites, placed.paths, compositions, kept, *about, ahead=ahead))
        if placed.adapters and not placed.merged:
            edits.append(
                LinearEdit(placed.adapters, compositions, self._banks, self.capacity, learning)
            )
        return edits

    def _parse(self, placed: Placed, compose: Compose, rows: int) -> list[Composition]:
        """One composition a row. Raises RoadError."""
        merged = (
            f"; adapters are merged into the weights, as '{placed.merged.composition}': unmerge() first"
            if placed.merged
            else ""
        )
        try:
            compositions = parse_rows(compose, rows, placed.names)
        except RoadError as error:
            raise RoadError(f"{error}{merged}") from None
        if merged:
            given = compose if isinstance(compose, (list, tuple)) else [compose]
            for each, composition in zip(given, compositions, strict=False):
                if not composition.terms and each != ALL:
                    raise RoadError(
                        f"composition {quoted(each)} is the base model{merged}, or compose 'all'"
                    )
        check_sums(placed.sites, compositions)
        check_products(placed.adapters, compositions)
        return compositions


def _places(positions: PositionLike | None) -> Position | Tokens | None:
    return None if positions is None else parse_positions(positions)
