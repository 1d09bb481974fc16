"""A progress bar for training, on stderr, so that stdout stays for results."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback


@contextmanager
def progress_bar(trainer: Trainer, *, quiet: bool) -> Iterator[None]:
    """Show roadint's bar in the place of Trainer's own, while the trainer trains.

    Args:
        trainer: Prints nothing itself any more.
        quiet: No bar at all.
    """
    for printing in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printing)
    if quiet:
        yield
        return
    bar = TrainingBar()
    trainer.add_callback(bar)
    try:
        yield
    finally:  # also where the training does not come to its end
        bar.stop()


class TrainingBar(TrainerCallback):
    """Steps done, time left and the latest loss of each composition, in nats a token."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[losses]}"),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task("training", losses="")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the bar at the step where a resumed run stands."""
        self._bar.update(self._task, total=state.max_steps, completed=state.global_step)
        self._bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count a step."""
        self._bar.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the losses."""
        losses = [
            f"{name.removeprefix('loss/')} {value:.2f}"
            for name, value in (logs or {}).items()
            if name.startswith("loss/")
        ]
        if losses:
            self._bar.update(self._task, losses=", ".join(losses))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the finished bar on the screen."""
        self.stop()

    def stop(self) -> None:
        """Give the terminal back."""
        self._bar.stop()
