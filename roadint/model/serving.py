"""What a server of checkpoints is started with, checked before any model is loaded."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from roadint.checkpoint.content import Checkpoint
from roadint.checkpoint.reading import folder_of, read
from roadint.checkpoint.sources import CheckpointSources
from roadint.data.chat_template import chat_template
from roadint.engines.vllm.http.server import ServerSettings, check_vllm
from roadint.engines.vllm.registry import Registry
from roadint.engines.vllm.served import Base, formats_of
from roadint.engines.vllm.settings import Settings
from roadint.errors import RoadError, did_you_mean, first_line, quoted
from roadint.files.paths import is_folder
from roadint.grammar.subspace import check_label
from roadint.model.pretrained import MODELS, source_of


@dataclass(frozen=True)
class ServerPlan:
    """A server that can be started.

    Args:
        settings: What it is started with.
        names: What a composition may name.
        chats: Whether requests of chats are rendered as the prompts of the training were.
    """

    settings: ServerSettings
    names: Sequence[str]
    chats: bool


def plan_server(
    checkpoint: str,
    added: Mapping[str, str] | None = None,
    model: str | None = None,
    *,
    folder: str | Path = "runs",
    layers: Sequence[int] = (),
    adapters: bool = False,
    further: Sequence[str] = (),
) -> ServerPlan:
    """Plan a server, and refuse what could not be served.

    Args:
        checkpoint: A folder or hub id, whose names have no label.
        added: Further checkpoints, by label.
        model: The name of a base model, in place of the checkpoint's.
        folder: Where clients may load further checkpoints from, beside the public hub.
        layers: Layers, from 0, that those may edit, beside the ones of the first checkpoints.
        adapters: Whether those may have adapters.
        further: vLLM's own arguments, which come before what the checkpoint says.

    Returns:
        The plan.

    Raises:
        RoadError: where vLLM is missing, or a checkpoint is damaged or of another model.
    """
    check_vllm()
    for label in added or {}:
        check_label(label)
    folders = {"": folder_of(checkpoint)}
    folders |= {label: folder_of(path) for label, path in (added or {}).items()}
    first = read(folders[""])
    about = first.config["base_model"]
    if about.get("labels"):
        raise RoadError(f"{checkpoint} predicts classes, a server writes text: use RoadModel")
    name = model or about["id"]
    source, base = _base_of(name)
    if any(layer >= base.layers for layer in layers):
        raise RoadError(f"layers {quoted(list(layers))}: {name} has {base.layers}, from 0")
    roadint = Settings(
        {label: str(path.resolve()) for label, path in folders.items()},
        tuple(layers),
        adapters,
        str(Path(folder).resolve()),
    )
    registry = Registry.of(roadint, base)
    saved = {label: served.content for label, served in registry.served.items()}
    defaults: dict[str, Any] = {
        "served_model_name": [Path(name).name if is_folder(Path(name)) else name]
    }
    defaults |= formats_of(base.model_type)
    if first.dtype != "auto":
        defaults["dtype"] = first.dtype
    template = None if _says(further, "--chat-template") else _template_of(saved, source)
    if template is not None:
        defaults["chat_template"] = template
    chats = template is not None or first.config["template"] == "chat"
    settings = ServerSettings(source, roadint.as_json(), defaults, further)
    return ServerPlan(settings, registry.names, chats)


def _base_of(name: str) -> tuple[str, Base]:
    """Where the base model is, and what it is."""
    source = source_of(name)
    try:
        config = AutoConfig.from_pretrained(source).get_text_config()
    except Exception as error:  # whatever the readers raise for a broken folder
        raise RoadError(
            f"model {quoted(name)} can't be read ({first_line(error)}){did_you_mean(name, MODELS)}"
        ) from None
    return source, Base(config.hidden_size, config.num_hidden_layers, config.model_type)


def _template_of(saved: Mapping[str, Checkpoint], source: str) -> str | None:
    """The chat template that renders prompts as in the training; None where there is none."""
    templates = {label: part.config["template"] for label, part in saved.items()}
    first = templates[""]
    for label, template in templates.items():
        if template != first:
            raise RoadError(
                f"checkpoint {quoted(label)} was trained with template {quoted(template)}, the "
                f"first one with {quoted(first)}: choose one for all chats with -- --chat-template"
            )
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except Exception as error:  # whatever the readers raise for a broken folder
        raise RoadError(f"the tokenizer of {source} can't be read ({first_line(error)})") from None
    return chat_template(first, tokenizer)


def _says(further: Sequence[str], option: str) -> bool:
    return any(text.partition("=")[0].replace("_", "-") == option for text in further)


def needs_of(folder: str | Path, first: str) -> tuple[list[int], bool]:
    """What an engine needs so that each checkpoint of a folder can be loaded later.

    Args:
        folder: The folder; what is no readable checkpoint in it does not count.
        first: The first checkpoint; those of other models don't count either.

    Returns:
        The layers that they edit, from 0, in order; and whether one has adapters.
    """
    base = read(folder_of(first)).config["base_model"]
    layers: set[int] = set()
    adapters = False
    sources = CheckpointSources(Path(folder).resolve())
    for name in sources.in_folder():
        with suppress(RoadError):
            config = read(sources.path_of(sources.source_of(name))).config
            if all(config["base_model"][size] == base[size] for size in ("width", "layers")):
                layers |= {spec["layer"] for spec in config["interventions"]}
                adapters = adapters or bool(config.get("adapters"))
    return sorted(layers), adapters
