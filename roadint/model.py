"""RoadModel: interventions on a transformers model, with a composition for each row of the batch."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from torch import Tensor, nn

from roadint import checkpoint, describe
from roadint.composition import ALL, Composition, CompositionLike, parse_rows
from roadint.edit import Edit
from roadint.errors import RoadError, first_line
from roadint.head import score
from roadint.layers import cached_columns, find_layers, site_path, takes_positions, text_config, width_of
from roadint.prompt import Template, batch_prompts, check_template, pad_id
from roadint.site import SubspaceIntervention, subspace_names

Compose = CompositionLike | Sequence[CompositionLike]
DECODING = {"do_sample": False, "repetition_penalty": 1.1, "no_repeat_ngram_size": 5, "max_new_tokens": 128}
"""The paper's decoding, for `generate`: greedy, with mild penalties (its notebook; 128 to 512 new tokens)."""


class RoadModel(nn.Module):
    """One or several interventions, RoadInterventions above all, on a decoder-only transformers model.

    model: the model, which stays the caller's: never changed, never copied. interventions: where it is edited; one without a
    width gets the model's. Raises RoadError where a layer, a component or a width does not fit the model.

    template: how `generate` and `describe` turn an instruction into a prompt; training sets it, a checkpoint keeps it.
    training_summary: what a checkpoint tells of its training.
    """

    def __init__(self, model: nn.Module, interventions: SubspaceIntervention | Sequence[SubspaceIntervention]) -> None:
        super().__init__()
        listed = [interventions] if isinstance(interventions, SubspaceIntervention) else list(interventions)
        if not listed:
            raise RoadError("no interventions given: expected at least one RoadIntervention")
        width = width_of(model)
        self._paths = [site_path(model, intervention.layer, intervention.component) for intervention in listed]
        for intervention, path in zip(listed, self._paths, strict=True):
            intervention.bind(width)
            placed = next(model.get_submodule(path).parameters(), None)
            if placed is not None and placed.device.type != "meta":
                intervention.to(placed.device)
        self.model = model
        self.interventions = nn.ModuleList(listed)
        self.template: Template = "plain"
        self.training_summary: dict[str, Any] = {}
        self._takes_positions = takes_positions(model)

    @property
    def names(self) -> list[str]:
        """The names of all subspaces, in order: what a composition may use."""
        return subspace_names(self.sites)

    @property
    def trainable_count(self) -> int:
        """How many numbers train, over all interventions."""
        return sum(intervention.trainable_count for intervention in self.sites)

    @property
    def device(self) -> torch.device:
        """Where the model takes its inputs."""
        return next(self.model.parameters()).device

    def compositions(self) -> list[Composition]:
        """What there is to compare: none, each subspace alone and, where there are several, all of them."""
        alone: list[CompositionLike] = [None, *self.names]
        everything: list[CompositionLike] = [ALL] if len(self.names) > 1 else []
        return [Composition.parse(each, self.names) for each in alone + everything]

    def forward(
        self,
        *,
        compose: Compose = ALL,
        learning: Compose = ALL,
        prompt_length: Tensor | None = None,
        scored: tuple[Tensor, Tensor] | None = None,
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
        Raises RoadError for a composition or a mask that does not fit.
        """
        rows, columns = _shape(inputs)
        compositions = parse_rows(compose, rows, self.names)
        if not any(composition.terms for composition in compositions):
            return self._run(inputs, scored)
        kept = inputs.get("attention_mask")
        if kept is None:
            kept = torch.ones(rows, cached_columns(inputs) + columns, dtype=torch.long, device=self.device)
        elif kept.ndim != 2 or kept.shape[0] != rows:
            raise RoadError(f"attention_mask of shape {tuple(kept.shape)} for {rows} rows: expected [rows, columns]")
        elif self._takes_positions and inputs.get("position_ids") is None:
            # Without them, models with learned positions would count padding.
            inputs["position_ids"] = (kept.long().cumsum(1) - 1).clamp(min=0)[:, -columns:]
        learned = None if learning == ALL else parse_rows(learning, rows, self.names)
        edit = Edit(self.sites, compositions, kept, prompt_length, learned)
        with edit.applied(self.model, self._modules_at_sites()):
            return self._run(inputs, scored)

    def generate_tokens(self, *, compose: Compose = ALL, **inputs: Any) -> Any:
        """The model's own `generate`, with a composition a row: same arguments, same result.

        input_ids [rows, columns], padded on the left where rows differ, with their attention_mask. Beams and returned
        sequences share their row's composition. Raises RoadError as `forward` does.
        """
        rows, columns = _shape(inputs)
        compositions = parse_rows(compose, rows, self.names)
        kept = inputs.get("attention_mask")
        if kept is None:
            kept = inputs["attention_mask"] = torch.ones(rows, columns, dtype=torch.long, device=self.device)
        if not any(composition.terms for composition in compositions):
            return self.model.generate(**inputs)  # type: ignore[operator]
        edit = Edit(self.sites, compositions, kept)
        with edit.applied(self.model, self._modules_at_sites()):
            return self.model.generate(**inputs)  # type: ignore[operator]

    def generate(
        self,
        tokenizer: Any,
        prompts: str | Sequence[str],
        compose: Compose = ALL,
        *,
        template: Template | None = None,
        **generation: Any,
    ) -> list[str]:
        """Answer prompts in one batch, each through its own composition.

        prompts: instructions; a single one is asked once for each composition. compose: as in `forward`.
        template: overrides the model's. generation: for transformers' `generate`, over roadint.model.DECODING.
        Returns the answers, one a row (times num_return_sequences), without the prompts. Raises RoadError for bad input.
        """
        if isinstance(prompts, str):
            prompts = [prompts] * (len(compose) if isinstance(compose, (list, tuple)) else 1)
        if not prompts:
            raise RoadError("no prompts given: expected at least one")
        chosen = check_template(template or self.template, tokenizer)
        batch = batch_prompts(tokenizer, chosen, prompts)
        kept = batch["attention_mask"].bool()
        # Penalties look at ids, masked or not. Padding with a token that the row holds anyway keeps rows independent.
        first = batch["input_ids"].gather(1, kept.long().argmax(dim=1, keepdim=True))
        batch["input_ids"] = torch.where(kept, batch["input_ids"], first)
        columns = kept.shape[1]
        settings = {"pad_token_id": pad_id(tokenizer), **DECODING, **generation}
        tokens = self.generate_tokens(
            compose=compose, **{name: tensor.to(self.device) for name, tensor in batch.items()}, **settings
        )
        tokens = tokens if torch.is_tensor(tokens) else tokens.sequences
        return [str(text).strip() for text in tokenizer.batch_decode(tokens[:, columns:], skip_special_tokens=True)]

    def describe(self, tokenizer: Any, prompt: str, template: Template | None = None) -> str:
        """Print, and return, the sites, the subspaces and the prompt's tokens with the edited ones marked."""
        chosen = check_template(template or self.template, tokenizer)
        ids = batch_prompts(tokenizer, chosen, [prompt])["input_ids"][0]
        text = describe.describe(self.sites, [tokenizer.decode([token]) for token in ids.tolist()])
        print(text)
        return text

    def save_pretrained(self, folder: str | Path) -> int:
        """Write the interventions (not the model) as a checkpoint of a few kB; returns its size in bytes."""
        config = text_config(self.model)
        about = {
            "base_model": {
                "id": str(getattr(self.model, "name_or_path", "")),
                "model_type": str(config.model_type),
                "width": int(config.hidden_size),
                "layers": int(config.num_hidden_layers),
            },
            "template": self.template,
            "training": self.training_summary,
        }
        return checkpoint.save(folder, self.sites, about)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, model: nn.Module) -> "RoadModel":
        """Put a checkpoint, from a folder or the hub, onto its base model. Raises RoadError where it doesn't fit or is damaged."""
        folder = checkpoint_folder(name_or_path)
        interventions, config = checkpoint.load(folder)
        width, layers = width_of(model), len(find_layers(model)[1])
        base = config["base_model"]
        if base["width"] != width or base["layers"] != layers:
            raise RoadError(
                f"{name_or_path} was trained on {base['id'] or base['model_type']} "
                f"(width {base['width']}, {base['layers']} layers), "
                f"this model has width {width} and {layers} layers: load its own base model"
            )
        road = cls(model, interventions)
        road.template = check_template(config["template"])
        road.training_summary = config["training"]
        return road

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload the checkpoint with a model card to the hub; returns the address of the commit."""
        api = huggingface_hub.HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            card = describe.model_card(repo_id, str(getattr(self.model, "name_or_path", "")), self.sites)
            (Path(folder) / "README.md").write_text(card, encoding="utf-8")
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload with roadint").commit_url)

    def train(self, mode: bool = True) -> "RoadModel":
        """Switch the interventions; the caller's model keeps its own mode (a frozen model should not drop out)."""
        self.training = mode
        self.interventions.train(mode)
        return self

    @property
    def sites(self) -> list[SubspaceIntervention]:
        """The interventions, as a plain list of their own type."""
        return list(self.interventions)  # type: ignore[arg-type]

    def _run(self, inputs: dict[str, Any], scored: tuple[Tensor, Tensor] | None) -> Any:
        return self.model(**inputs) if scored is None else score(self.model, inputs, *scored)

    def _modules_at_sites(self) -> list[nn.Module]:
        return [self.model.get_submodule(path) for path in self._paths]


def _shape(inputs: dict[str, Any]) -> tuple[int, int]:
    for name in ("input_ids", "inputs_embeds", "inputs"):
        if inputs.get(name) is not None:
            return int(inputs[name].shape[0]), int(inputs[name].shape[1])
    raise RoadError("no input given: expected input_ids=… or inputs_embeds=…")


def checkpoint_folder(name_or_path: str | Path) -> Path:
    """The folder of a checkpoint: a local one, or a copy of the hub's. Raises RoadError where it is neither."""
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    try:
        files = huggingface_hub.snapshot_download(str(name_or_path), allow_patterns=[checkpoint.CONFIG, checkpoint.TENSORS])
    except Exception as error:  # whatever the hub, the network or the name's validation raise
        raise RoadError(
            f"{str(name_or_path)!r} is neither a folder nor a reachable hub repository ({first_line(error)})"
        ) from error
    return Path(files)
