"""A progress bar for training, on stderr, so that stdout stays for results."""

from contextlib import ExitStack
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


class ProgressBar(TrainerCallback):
    """Steps done, time left and the latest loss of each composition."""

    def __init__(self) -> None:
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._bar = Progress(
            *columns, TextColumn("{task.fields[losses]}"), console=Console(stderr=True)
        )
        self._task = self._bar.add_task("training", losses="")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the bar, where a resumed run stands."""
        self._bar.update(self._task, total=state.max_steps, completed=state.global_step)
        self._bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One step on."""
        self._bar.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the losses, in nats a token."""
        losses = [
            f"{key.removeprefix('loss/')} {value:.2f}"
            for key, value in (logs or {}).items()
            if key.startswith("loss/")
        ]
        if losses:
            self._bar.update(self._task, losses=", ".join(losses))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the finished bar on the screen."""
        self.stop()

    def stop(self) -> None:
        """Give the terminal back, also where the training did not end."""
        self._bar.stop()


def show_progress(trainer: Trainer, undo: ExitStack, *, quiet: bool) -> None:
    """This bar instead of Trainer's own, or none; undo: stops it, whatever ends the training."""
    for printing in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printing)
    if not quiet:
        bar = ProgressBar()
        undo.callback(bar.stop)
        trainer.add_callback(bar)
