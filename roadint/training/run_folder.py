"""The output folder of a run: its identity, its checkpoints while it trains, its end.

A kill at any point leaves a run that can continue to the same result, or a finished one.

A run keeps two things in the folder `checkpoints` of its output: run.json, with what must be the
same to continue, and Trainer's checkpoint-N. That folder appears by a rename, when run.json is in
it. The run ends when the result is in the output. The result names its run, and a mark beside it
says that `checkpoints` is being removed: so the remains of a finished run differ from an unfinished
one.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_pt_utils import safe_globals

from roadint.checkpoint.content import Checkpoint
from roadint.checkpoint.format import CONFIG, WHILE_TRAINING
from roadint.checkpoint.reading import read, tidy
from roadint.data.collate import Example
from roadint.errors import RoadError
from roadint.files.atomic import write_whole
from roadint.files.plain_json import plain
from roadint.model.road_model import RoadModel
from roadint.recipes.names import flat
from roadint.recipes.recipe import Recipe
from roadint.training.fingerprint import fingerprint_of

LOG = "log.jsonl"
_IDENTITY = "run.json"
_PROCESSES = "processes"  # beside the identity: a result is the same run by any number
_NEW, _ENDS = f".{WHILE_TRAINING}.new", f".{WHILE_TRAINING}.done"
# The result does not depend on these settings.
_INDIFFERENT = ("save_steps", "prefix_reuse", "prefix_memory")


def identity_of(road: RoadModel, recipe: Recipe, examples: Sequence[Example]) -> dict[str, Any]:
    """The identity of a run: what must be the same to continue it.

    Args:
        road: The model that trains.
        recipe: The recipe; the source of the data does not matter, its tokens do.
        examples: The tokens.

    Returns:
        Settings, interventions and adapters, and digests of tokens and of the base model's values,
        as plain JSON values.
    """
    indifferent = (*_INDIFFERENT, "data")
    tokens = json.dumps([example.identity for example in examples])
    edits: list[Any] = [*road.interventions, *road.adapters.values()]
    identity = {
        "settings": {
            name: value for name, value in flat(recipe.record()).items() if name not in indifferent
        },
        "sites": [edit.spec() for edit in edits],
        "tokens": [
            sum(map(len, examples)),
            len(examples),
            hashlib.sha256(tokens.encode()).hexdigest(),
        ],
        "base": fingerprint_of(road.model.named_parameters()),
    }
    return dict(plain(identity))


def digest_of(identity: dict[str, Any]) -> str:
    """The digest of an identity, which a result keeps."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def is_finished(out: Path) -> bool:
    """Whether a folder has a result, and no unfinished run."""
    folder = out / WHILE_TRAINING
    try:
        config = json.loads((out / CONFIG).read_text(encoding="utf-8"))
    except OSError:
        return False
    except (ValueError, RecursionError):  # damaged: reading the checkpoint raises the error
        config = {}
    if (out / _ENDS).is_file() or not folder.is_dir():
        return True
    try:
        identity = json.loads((folder / _IDENTITY).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return not checkpoints_in(folder)
    except (OSError, ValueError):
        return False
    identity.pop(_PROCESSES, None)
    return bool(_run_of(config) == digest_of(identity))


def finish(out: Path) -> None:
    """Remove the checkpoints of a run whose result is in its folder."""
    if (out / WHILE_TRAINING).is_dir():
        (out / _ENDS).touch()
    _remove(out)
    for leftover in out.glob(f".{LOG}.*"):  # of a write that was cut short
        leftover.unlink(missing_ok=True)
    with suppress(RoadError):  # a result that is damaged may be trained again
        tidy(out)


def finished(out: Path, identity: dict[str, Any]) -> Checkpoint | None:
    """The result in a folder; None where it is damaged or another run's."""
    try:
        saved = read(out)
    except (RoadError, OSError):
        return None
    return saved if _run_of(saved.config) == digest_of(identity) else None


def restore(road: RoadModel, saved: Checkpoint) -> None:
    """Copy the values of a checkpoint into a model with the same interventions and adapters."""
    edits: list[Any] = [*road.interventions, *road.adapters.values()]
    stored: list[Any] = [*saved.interventions(), *saved.adapters(road.model)]
    with torch.no_grad():
        for edit, source in zip(edits, stored, strict=True):
            values = source.values()
            for name, value in edit.values().items():
                value.copy_(values[name])


def check_same_recipe(
    out: Path, saved: Checkpoint, recipe: Recipe, data: Mapping[str, str] | None
) -> None:
    """Check that a result comes from this recipe.

    Args:
        out: The folder of the result.
        saved: The result.
        recipe: The recipe.
        data: Composition → source; the recipe's by default.

    Raises:
        RoadError: where settings or names of data differ.
    """
    training = saved.config.get("training")
    recorded = training.get("recipe") if isinstance(training, dict) else None
    before = flat(recorded) if isinstance(recorded, dict) else None
    now = flat(plain(recipe.record(data)))
    if not isinstance(before, dict):
        return
    compared = [name for name in now if name in before and name not in _INDIFFERENT]
    other = [name for name in compared if before[name] != now[name]]
    if other:
        raise RoadError(
            f"{out} holds a finished run of other settings ({', '.join(other)}): "
            "expected the same to take it up, or --overwrite"
        )


def last_checkpoint(
    out: Path, identity: dict[str, Any], *, resume: bool, processes: int = 1, writes: bool = True
) -> Path | None:
    """The last whole checkpoint of a run; remains of others are removed.

    Args:
        out: The output folder.
        identity: The identity of the run.
        resume: Whether the run may continue an unfinished one.
        processes: How many processes train together.
        writes: Whether this process writes.

    Returns:
        The folder of the checkpoint; None where the run starts anew, for which `out` is prepared.

    Raises:
        RoadError: where there is an unfinished run, without `resume` or of another identity.
    """
    folder = out / WHILE_TRAINING
    if writes and not resume and is_finished(out):
        finish(out)
    paths = checkpoints_in(folder)
    if paths and not resume:
        raise RoadError(
            f"{out} holds an unfinished run: add --resume (resume=True) to go on, "
            "or remove the folder"
        )
    identity = {**identity, _PROCESSES: processes}
    if paths:
        _check_identity(out, folder / _IDENTITY, identity)
    whole = [path for path in paths if is_whole(path, processes)]
    if not whole and any(_is_complete(path, processes) for path in paths):
        raise RoadError(
            f"the checkpoints of the unfinished run in {out} can't be read: remove {folder} to "
            "start anew"
        )
    if writes:
        for path in paths:
            if path not in whole and not _is_complete(path, processes):
                shutil.rmtree(path)
        if not whole:
            _start(out, identity)
        for leftover in [*folder.glob(f".{_IDENTITY}.*"), *folder.glob("prefix-*.bin")]:
            leftover.unlink(missing_ok=True)
    return whole[-1] if whole else None


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder, whole or not, the newest last."""
    numbered = [path for path in folder.glob("checkpoint-*") if _number_of(path).isdecimal()]
    return sorted(numbered, key=lambda path: int(_number_of(path)))


def log_state(rank: int) -> str:
    """The name of the file in which a process keeps its sums for the next line of the log."""
    return f"log_state_{rank}.pt"


def is_whole(path: Path, processes: int = 1) -> bool:
    """Whether a checkpoint has everything to continue as if the training had not stopped.

    Args:
        path: The folder of the checkpoint.
        processes: How many processes train together; every one has its own random state and sums.
    """
    try:
        read(path)
        for name in ("optimizer.pt", "scheduler.pt", *_of_processes(processes)):
            with safe_globals():  # type: ignore[no-untyped-call]
                torch.load(path / name, map_location="cpu", weights_only=True)
        return _is_complete(path, processes)
    except MemoryError:
        raise  # no fault of the files
    except Exception:  # an unpickler raises anything for a file that was cut short
        return False


def _of_processes(processes: int) -> list[str]:
    """The files that each process writes by itself."""
    ranks = range(processes)
    random = ["rng_state.pth"] if processes == 1 else [f"rng_state_{rank}.pth" for rank in ranks]
    return [*random, *map(log_state, ranks)]


def _is_complete(path: Path, processes: int) -> bool:
    """Whether a checkpoint was written to its end: the state of the training comes last.

    Of several processes the first one writes it, and does not wait for the others' files.
    """
    if processes > 1 and not all((path / name).is_file() for name in _of_processes(processes)):
        return False
    try:
        state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return isinstance(state, dict) and state.get("global_step") == int(_number_of(path))


def _number_of(path: Path) -> str:
    return path.name.rpartition("-")[2]


def _remove(out: Path) -> None:
    for folder in (WHILE_TRAINING, _NEW):
        if (out / folder).is_dir():
            shutil.rmtree(out / folder)
    (out / _ENDS).unlink(missing_ok=True)


def _run_of(config: Any) -> Any:
    training = config.get("training") if isinstance(config, dict) else None
    return training.get("run") if isinstance(training, dict) else None


def _start(out: Path, identity: dict[str, Any]) -> None:
    _remove(out)
    new, folder = out / _NEW, out / WHILE_TRAINING
    new.mkdir(parents=True)
    write_whole(new / _IDENTITY, json.dumps(identity))
    os.rename(new, folder)


def _check_identity(out: Path, file: Path, identity: dict[str, Any]) -> None:
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise RoadError(
            f"the unfinished run in {out} has no readable {file.name}, so nothing says whose its "
            f"checkpoints are: remove {file.parent} to start anew"
        ) from None
    known = before if isinstance(before, dict) else {}
    now = identity[_PROCESSES]
    if known.get(_PROCESSES, now) != now:
        raise RoadError(
            f"the unfinished run in {out} trains in {known[_PROCESSES]} processes, not in {now}: "
            "expected as many to resume it (torchrun --nproc-per-node)"
        )
    if {**known, _PROCESSES: now} != identity:
        other = [name for name in identity if known.get(name) != identity[name]]
        is_dated = other == ["tokens"] and identity["settings"].get("template") == "chat"
        raise RoadError(
            f"the unfinished run in {out} has other settings or data "
            f"({', '.join(other) or 'more of them'}): expected the same to resume it"
            + ("; some chat templates write today's date into every prompt" if is_dated else "")
        )
