"""RoadModel: a transformers model with interventions and adapters, and a composition for each row of the batch."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from roadint import describe
from roadint.arithmetic import check_products, check_sums
from roadint.composition import ALL, Composition, CompositionLike, parse_rows
from roadint.edit import Edit, Source
from roadint.errors import RoadError, listing
from roadint.exchange import Mode, gather, read
from roadint.head import score
from roadint.hosted import as_tokens, shows_model_arguments
from roadint.inputs import Prompts, kept_tokens, shape_of, tokens_of
from roadint.layers import check_recomputation, takes_positions
from roadint.linear.edit import LinearEdit
from roadint.linear.merge import Merged, merge
from roadint.position import Position, PositionLike, Tokens, parse_positions
from roadint.prompt import Template, batch_prompts, check_template, generation_inputs, pad_id
from roadint.roads import Roads
from roadint.site import SubspaceIntervention

Compose = CompositionLike | Sequence[CompositionLike]
DECODING = {"do_sample": False, "repetition_penalty": 1.1, "no_repeat_ngram_size": 5, "max_new_tokens": 128}
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
        # Encoders count positions their own way.
        self._takes_positions = takes_positions(model) and bool(getattr(model, "can_generate", bool)())

    @shows_model_arguments
    def forward(
        self,
        *,
        compose: Compose = ALL,
        learning: Compose = ALL,
        prompt_length: Tensor | None = None,
        scored: tuple[Tensor, Tensor] | None = None,
        positions: PositionLike | None = None,
        sources: Sequence[Source | None] | None = None,
        **inputs: Any,
    ) -> Any:
        """The model's own forward, with its own output class, and a composition a row.

        inputs: the model's keyword arguments; input_ids or inputs_embeds [rows, columns], attention_mask [rows, columns with
        those in the cache] (all ones by default).
        compose: one composition for all rows, or a list of one a row; None is the base model, bit for bit.
        prompt_length: [rows] int, how many of a row's kept tokens are the prompt; the rest counts as generated. All by default,
        so that "last" is the last token that the mask keeps.
        learning: the blocks that get a row's gradient, as a composition for all rows or one a row; the others act all the same.
        scored: ([2, tokens] rows and columns, [tokens] labels), int: return, instead of the output, the negative log-likelihood in
        nats of each label as the token after its place, [tokens] float32; the head runs there alone, and no logits are kept.
        positions: where, instead of the interventions' own: a position for all rows, or a list of token indices for each.
        sources: for each intervention, what it takes (RoadInterchange), as `collect` returns it, or for each row one state,
        [width], for all of its edited tokens, generated ones too; None where it takes nothing.
        Raises RoadError for a composition or a mask that does not fit.
        """
        compositions = self._parse(compose, shape_of(inputs)[0])
        if not any(composition.terms for composition in compositions):
            return self._run(inputs, scored)
        check_recomputation(self.model)
        kept = kept_tokens(inputs, self._takes_positions, self.device)
        learned = None if learning == ALL else parse_rows(learning, len(compositions), self.names)
        with self._edited(compositions, kept, prompt_length, learned, _places(positions), self._check_sources(sources)):
            return self._run(inputs, scored)

    def generate_tokens(self, *, compose: Compose = ALL, sources: Sequence[Source | None] | None = None, **inputs: Any) -> Any:
        """The model's own `generate`, with a composition a row: same arguments, same result.

        input_ids [rows, columns], padded on the left where rows differ, with their attention_mask. Beams and returned
        sequences share their row's composition and sources. Raises RoadError as `forward` does.
        """
        rows, columns = shape_of(inputs)
        compositions = self._parse(compose, rows)
        kept = inputs.get("attention_mask")
        if kept is None:
            kept = inputs["attention_mask"] = torch.ones(rows, columns, dtype=torch.long, device=self.device)
        if not any(composition.terms for composition in compositions):
            return self.model.generate(**inputs)  # type: ignore[operator]
        with torch.no_grad(), self._edited(compositions, kept, sources=self._check_sources(sources)):
            return self.model.generate(**inputs)  # type: ignore[operator]

    def generate(
        self,
        tokenizer: Any = None,
        prompts: str | Sequence[str] | None = None,
        compose: Compose = ALL,
        *,
        template: Template | None = None,
        sources: Sequence[Source | None] | None = None,
        **generation: Any,
    ) -> Any:
        """Answer prompts in one batch, each through its own composition; with tokens, input_ids=…, it is `generate_tokens`.

        prompts: instructions; a single one is asked once for each composition. compose: as in `forward`.
        template: overrides the model's. sources: as in `forward`.
        generation: for transformers' `generate`, over roadint.model.DECODING.
        Returns the answers, one a row (times num_return_sequences), without the prompts. Raises RoadError for bad input.
        """
        if prompts is None:  # as transformers' pipelines and trainers call it
            return self.generate_tokens(compose=compose, sources=sources, **as_tokens(tokenizer, template, generation))
        if isinstance(prompts, str):
            prompts = [prompts] * (len(compose) if isinstance(compose, (list, tuple)) else 1)
        if not prompts:
            raise RoadError("no prompts given: expected at least one")
        chosen = check_template(template or self.template, tokenizer)
        batch = generation_inputs(tokenizer, chosen, prompts)
        columns = batch["input_ids"].shape[1]
        settings = {"pad_token_id": pad_id(tokenizer), **DECODING, **generation}
        tokens = self.generate_tokens(
            compose=compose, sources=sources, **{name: tensor.to(self.device) for name, tensor in batch.items()}, **settings
        )
        tokens = tokens if torch.is_tensor(tokens) else tokens.sequences
        return [str(text).strip() for text in tokenizer.batch_decode(tokens[:, columns:], skip_special_tokens=True)]

    def collect(
        self, tokenizer: Any, prompts: Prompts, positions: PositionLike | None = None, *, template: Template | None = None
    ) -> list[list[Tensor]]:
        """The model's own hidden states where the interventions act: for each of them and each prompt, [tokens, width].

        prompts: instructions, or tokens: {"input_ids": [rows, columns], "attention_mask": …}; positions: instead of the
        interventions' own, as in `forward`. No layer above the highest site runs. Raises RoadError for bad input.
        """
        with torch.no_grad():
            return self._read(self._tokens(tokenizer, prompts, template), positions)

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
        takes = [site.takes_source for site in self.sites]
        if not any(takes):
            raise RoadError("no intervention takes a source: expected a RoadInterchange among them")
        several = not isinstance(source, (str, Mapping)) and not all(isinstance(each, str) for each in source)
        given: list[Any] = list(source) if several else [source] * sum(takes)
        if len(given) != sum(takes):
            raise RoadError(f"{len(given)} sources for {sum(takes)} interchanges: expected one each, or prompts for all of them")
        inputs = self._tokens(tokenizer, base, template)
        compositions = self._parse(compose, shape_of(inputs)[0])

        def read_source(prompts: Prompts, taken: Sequence[Source | None]) -> list[list[Tensor]]:
            tokens = self._tokens(tokenizer, prompts, template)
            return self._read(tokens, source_positions or positions, compositions, positions, taken)

        sources = gather(takes, given, mode, read_source)
        return self(compose=compositions, positions=positions, sources=sources, **inputs)

    def merge(self, compose: CompositionLike = ALL, *, keep: bool = False) -> Merged:
        """Put a composition of adapters into the model's own weights, which then run at no cost; nothing composes until `unmerge`.

        "all" is all adapters; weighted sums of RoAd1 are their product. keep: keep the weights as they were, so that `unmerge`
        is exact; else the inverse rotations bring them back to the dtype's rounding. A head takes the place of the model's.
        Works in place, two rows at a time. Warns where the weights' dtype rounds much of the change away.
        Raises RoadError, and changes nothing, for edits of hidden states, quantised or shared weights, and what does not commute.
        """
        if self._merged:
            raise RoadError(f"adapters are merged already, as '{self._merged.composition}': unmerge() first")
        composition = Composition.parse(compose, list(self.adapters) if compose == ALL else self.names)
        for name, _ in composition.terms:
            if name not in self.adapters:
                raise RoadError(
                    f"{name!r} edits hidden states at some tokens, which no weights do: expected {listing(self.adapters)}"
                )
        if not composition.terms:
            raise RoadError(
                f"nothing to merge in {str(compose)!r}: expected a composition of adapters, of {listing(self.adapters)}"
            )
        check_products(self.adapters, [composition])
        self._merged = merge(self.model, self.adapters, composition, keep)
        return self._merged

    def unmerge(self) -> None:
        """Take merged adapters out of the weights again. Raises RoadError where none are merged."""
        if not self._merged:
            raise RoadError("no adapters are merged: expected merge() before unmerge()")
        self._merged.undo()
        self._merged = None

    @contextmanager
    def merged(self, compose: CompositionLike = ALL) -> Iterator[nn.Module]:
        """The model with adapters merged, inside; its weights are exactly as before afterwards, also after an exception."""
        self.merge(compose, keep=True)
        try:
            yield self.model
        finally:
            self.unmerge()

    def describe(self, tokenizer: Any, prompt: str, template: Template | None = None) -> str:
        """Print, and return, the sites, the subspaces and the prompt's tokens with the edited ones marked."""
        chosen = check_template(template or self.template, tokenizer)
        ids = batch_prompts(tokenizer, chosen, [prompt])["input_ids"][0]
        text = describe.describe(self.sites, [tokenizer.decode([token]) for token in ids.tolist()])
        print(text)
        return text

    def _tokens(self, tokenizer: Any, prompts: Prompts, template: Template | None) -> dict[str, Tensor]:
        return tokens_of(tokenizer, prompts, template or self.template, self.device)

    def _read(
        self,
        inputs: dict[str, Any],
        where: PositionLike | None,
        compositions: Sequence[Composition] = (),
        positions: PositionLike | None = None,
        taken: Sequence[Source | None] = (),
    ) -> list[list[Tensor]]:
        """The hidden states at the sites; the interchanges that have something in `taken` act in the pass."""
        kept = kept_tokens(inputs, self._takes_positions, self.device)
        edit = None
        if any(states is not None for states in taken):
            of_takers = {name for site in self.sites if site.takes_source for name in site.partition}
            acting = [Composition(tuple(term for term in each.terms if term[0] in of_takers)) for each in compositions]
            edit = Edit(self.sites, acting, kept, positions=_places(positions), sources=taken)
        return read(self.model, self.sites, self._modules_at_sites(), inputs, kept, _places(where), edit)

    @contextmanager
    def _edited(
        self,
        compositions: Sequence[Composition],
        kept: Tensor,
        prompt_length: Tensor | None = None,
        learning: Any = None,
        positions: Position | Tokens | None = None,
        sources: Sequence[Source | None] | None = None,
    ) -> Iterator[None]:
        """Interventions and adapters act inside, each row by its composition."""
        with ExitStack() as stack:
            if self.sites:
                edit = Edit(self.sites, compositions, kept, prompt_length, learning, positions, sources)
                stack.enter_context(edit.applied(self.model, self._modules_at_sites()))
            if self.linear and not self._merged:
                turning = LinearEdit(self.adapters, compositions, self._banks, self.capacity, learning)
                stack.enter_context(turning.applied(self.model))
            yield

    def _check_sources(self, sources: Sequence[Source | None] | None) -> Sequence[Source | None] | None:
        if sources is not None and len(sources) != len(self.sites):
            raise RoadError(
                f"{len(sources)} sources for {len(self.sites)} interventions: expected one each, None where none is taken"
            )
        return sources

    def _parse(self, compose: Compose, rows: int) -> list[Composition]:
        """One composition a row. Raises RoadError."""
        try:
            compositions = parse_rows(compose, rows, self.names)
        except RoadError as error:
            merged = (
                f"; adapters are merged into the weights, as '{self._merged.composition}': unmerge() first" if self._merged else ""
            )
            raise RoadError(f"{error}{merged}") from None
        check_sums(self.sites, compositions)
        check_products(self.adapters, compositions)
        return compositions

    def _run(self, inputs: dict[str, Any], scored: tuple[Tensor, Tensor] | None) -> Any:
        return self.model(**inputs) if scored is None else score(self.model, inputs, *scored)

    def _modules_at_sites(self) -> list[nn.Module]:
        return [self.model.get_submodule(self._paths[site.layer, site.component]) for site in self.sites]


def _places(positions: PositionLike | None) -> Position | Tokens | None:
    return None if positions is None else parse_positions(positions)
