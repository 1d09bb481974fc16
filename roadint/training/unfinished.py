"""The folder of a run while it goes on: what of it is whole, whose it is, and how it ends; a kill at any place leaves a run that
goes on to the same result, or one that is done.

A run keeps run.json, what must be the same to go on, and Trainer's checkpoint-N in the folder `checkpoints` of its output, which is
there, by a rename, only once run.json is in it. It ends when the result is in place: that names the run that it is from, and a mark
beside it says that `checkpoints` is being removed, so what a kill leaves of it is told from a run that is still to end.
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

from roadint.data.collate import Example
from roadint.errors import RoadError
from roadint.files.atomic import write_whole
from roadint.files.plain_json import plain
from roadint.model import checkpoint
from roadint.model.road_model import RoadModel
from roadint.recipes.recipe import Recipe
from roadint.training.fingerprint import fingerprint_of

LOG = "log.jsonl"
_IDENTITY = "run.json"
_NEW, _ENDS = f".{checkpoint.WHILE_TRAINING}.new", f".{checkpoint.WHILE_TRAINING}.done"


_HOW = ("save_steps", "prefix_reuse", "prefix_memory")  # the result does not depend on these


def identity_of(road: RoadModel, recipe: Recipe, examples: Sequence[Example]) -> dict[str, Any]:
    """What must be the same for a run to go on: the optimisation, the sites, the data's tokens and the base model's values."""
    # The tokens tell the data.
    settings = {name: value for name, value in vars(recipe).items() if name not in (*_HOW, "data")}
    sites = [
        *(each.spec() for each in road.sites),
        *(each.spec() for each in road.adapters.values()),
    ]
    tokens = json.dumps([[each.prompt, each.completion, each.composition] for each in examples])
    identity = {
        "settings": settings,
        "sites": sites,
        "tokens": [
            sum(map(len, examples)),
            len(examples),
            hashlib.sha256(tokens.encode()).hexdigest(),
        ],
        "base": fingerprint_of(road.model.named_parameters()),
    }
    return dict(plain(identity))


def digest_of(identity: dict[str, Any]) -> str:
    """What a finished checkpoint says of the run that it is from."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def is_finished(out: Path) -> bool:
    """Whether `out` holds a result, and no run that is still to end."""
    folder = out / checkpoint.WHILE_TRAINING
    try:
        config = json.loads((out / checkpoint.CONFIG).read_text(encoding="utf-8"))
    except OSError:
        return False
    except (ValueError, RecursionError):  # it is damaged, which reading it says
        config = {}
    if (out / _ENDS).is_file() or not folder.is_dir():
        return True
    try:
        identity = json.loads((folder / _IDENTITY).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return not listed(folder)
    except (OSError, ValueError):
        return False
    return bool(_run_of(config) == digest_of(identity))


def finish(out: Path) -> None:
    """Remove what a run whose result is in place kept while it ran."""
    if (out / checkpoint.WHILE_TRAINING).is_dir():
        (out / _ENDS).touch()
    _remove(out)
    for leftover in out.glob(f".{LOG}.*"):  # of a write that was cut short
        leftover.unlink(missing_ok=True)
    with suppress(RoadError):  # a result that is damaged may be trained again
        checkpoint.tidy(out)


def _remove(out: Path) -> None:
    for folder in (checkpoint.WHILE_TRAINING, _NEW):
        if (out / folder).is_dir():
            shutil.rmtree(out / folder)
    (out / _ENDS).unlink(missing_ok=True)


def _run_of(config: Any) -> Any:
    training = config.get("training") if isinstance(config, dict) else None
    return training.get("run") if isinstance(training, dict) else None


def finished(out: Path, identity: dict[str, Any]) -> checkpoint.Checkpoint | None:
    """The result in `out`, where it is whole and this run's."""
    try:
        saved = checkpoint.read(out)
    except (RoadError, OSError):
        return None
    return saved if _run_of(saved.config) == digest_of(identity) else None


def restore(road: RoadModel, saved: checkpoint.Checkpoint) -> None:
    """Put the values of a checkpoint of the same sites and adapters into a model's own."""
    found: list[Any] = [*saved.interventions(), *saved.adapters(road.model)]
    with torch.no_grad():
        here: list[Any] = [*road.sites, *road.adapters.values()]
        for own, theirs in zip(here, found, strict=True):
            values = theirs.values()
            for name, value in own.values().items():
                value.copy_(values[name])


def check_same_recipe(
    out: Path, saved: checkpoint.Checkpoint, recipe: Recipe, data: Mapping[str, str] | None
) -> None:
    """Raises RoadError where the finished result in `out` is of other settings, or data of other names, than those."""
    training = saved.config.get("training")
    before = training.get("recipe") if isinstance(training, dict) else None
    now = plain({**vars(recipe), "data": dict(data or recipe.data)})
    other = [
        name
        for name in now
        if name not in _HOW
        and isinstance(before, dict)
        and before.get(name, now[name]) != now[name]
    ]
    if other:
        raise RoadError(
            f"{out} holds a finished run of other settings ({', '.join(other)}): expected the same to take it up, or --overwrite"
        )


def last_checkpoint(
    out: Path, identity: dict[str, Any], *, resume: bool, processes: int = 1, writes: bool = True
) -> Path | None:
    """The last whole checkpoint of the same run; None where it starts anew, for which the folder is made ready.

    Those that a kill left half-written, or half-removed, are removed.
    processes: that train together. writes: whether this one does.
    Raises RoadError where an unfinished run is there that is not to go on, or is another's.
    """
    folder = out / checkpoint.WHILE_TRAINING
    if writes and not resume and is_finished(out):
        finish(out)
    found = listed(folder)
    if found and not resume:
        raise RoadError(
            f"{out} holds an unfinished run: add --resume (resume=True) to go on, or remove the folder"
        )
    if found:
        _check_identity(out, folder / _IDENTITY, identity)
    whole = [path for path in found if is_whole(path, processes)]
    if writes:
        for path in found:
            if path not in whole:
                shutil.rmtree(path)
        if not whole:
            _start(out, identity)
        for leftover in [*folder.glob(f".{_IDENTITY}.*"), *folder.glob("prefix-*.bin")]:
            leftover.unlink(missing_ok=True)
    return whole[-1] if whole else None


def _start(out: Path, identity: dict[str, Any]) -> None:
    _remove(out)
    new, folder = out / _NEW, out / checkpoint.WHILE_TRAINING
    new.mkdir(parents=True)
    write_whole(new / _IDENTITY, json.dumps(identity))
    os.rename(new, folder)


def log_state(rank: int) -> str:
    """The file of a checkpoint in which a process keeps what is summed for the next line of the log."""
    return f"log_state_{rank}.pt"


def listed(folder: Path) -> list[Path]:
    """The checkpoints in a folder, whole or not, the newest last."""
    numbered = [
        path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal()
    ]
    return sorted(numbered, key=lambda path: int(path.name.rpartition("-")[2]))


def _check_identity(out: Path, file: Path, identity: dict[str, Any]) -> None:
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise RoadError(
            f"the unfinished run in {out} has no readable {file.name}, so nothing says whose its checkpoints are: "
            f"remove {file.parent} to start anew"
        ) from None
    if not isinstance(before, dict) or before != identity:
        known = before if isinstance(before, dict) else {}
        other = [name for name in identity if known.get(name) != identity[name]]
        raise RoadError(
            f"the unfinished run in {out} has other settings or data ({', '.join(other) or 'more of them'}): "
            "expected the same to resume it"
        )


def is_whole(path: Path, processes: int = 1) -> bool:
    """Whether all is there, and can be read, that a training needs to go on as if it had not stopped."""
    states = (
        ["rng_state.pth"]
        if processes == 1
        else [f"rng_state_{rank}.pth" for rank in range(processes)]
    )
    states += [log_state(rank) for rank in range(processes)]
    try:
        checkpoint.read(path)
        for name in ("optimizer.pt", "scheduler.pt", *states):
            with safe_globals():  # type: ignore[no-untyped-call]
                torch.load(path / name, map_location="cpu", weights_only=True)
        state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        return bool(state["global_step"] == int(path.name.rpartition("-")[2]))
    except Exception:  # whatever an unpickler raises for a file that was cut short
        return False
