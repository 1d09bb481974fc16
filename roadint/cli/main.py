"""The command line of roadint: results on stdout (tables, or --json), the rest on stderr."""

import logging
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from roadint.cli.bench.app import app as bench
from roadint.cli.demo import demo
from roadint.cli.evaluate import evaluate
from roadint.cli.export import export
from roadint.cli.generate import generate
from roadint.cli.import_ import import_
from roadint.cli.inspect import inspect
from roadint.cli.merge import merge
from roadint.cli.push import push
from roadint.cli.recipes import recipes
from roadint.cli.serve import serve
from roadint.cli.sweep import sweep
from roadint.cli.train import train
from roadint.errors import RoadError, first_line
from roadint.version import __version__

_INTERRUPTED = 130  # what Typer makes of Ctrl-C
LEARN, USE, SERVE, SHARE = "Learn", "Use and measure", "Serve", "Other formats"

app = typer.Typer(
    help="Learn, compose, inspect and serve rotations of subspaces of hidden states.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _add(command: Callable[..., None], panel: str, example: str, name: str | None = None) -> None:
    """Add a command, with an example under its help."""
    shown = f"Example: roadint {example}"
    app.command(name, rich_help_panel=panel, epilog=shown)(command)


_add(train, LEARN, "train composition --out runs/german-english")
_add(sweep, LEARN, 'sweep composition --over "lr=[3e-3, 6e-3]" --out runs/sweep')
_add(recipes, LEARN, "recipes composition")
_add(generate, USE, 'generate runs/german-english "How can I learn English?" --compose german')
_add(evaluate, USE, "eval runs/german-english --max-prompts 32 --out report.json", "eval")
_add(inspect, USE, "inspect runs/german-english --plot angles.png")
app.add_typer(bench, name="bench", rich_help_panel=USE)
_add(demo, SERVE, "demo runs/german-english")
_add(serve, SERVE, "serve runs/german-english")
_add(merge, SHARE, "merge runs/rte --out plain")
_add(export, SHARE, "export runs/rte --out peft")
_add(push, SHARE, "push runs/german-english you/german-english --report report.json")
_add(import_, SHARE, "import peft --out runs/back", "import")

# Typer's errors of usage, from click or from the copy of it that newer ones bring.
_WrongUse: Any = typer.BadParameter.__mro__[2]


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Learn, compose, inspect and serve rotations of subspaces of hidden states."""
    if show:
        print(__version__)


def main() -> None:
    """Run the command line; bad input ends it with exit code 2 and one line."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.basicConfig(format="%(message)s")
    logging.getLogger("roadint").setLevel(logging.INFO)
    try:
        # Not among the help options: a column of short names would take the room of long ones.
        arguments = ["--help" if argument == "-h" else argument for argument in sys.argv[1:]]
        code = app(arguments, standalone_mode=False)
    except _WrongUse as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
            raise SystemExit(2) from None
        said = " ".join(error.format_message().split())
    except typer.Abort:
        raise SystemExit(1) from None
    except RoadError as error:
        said = " ".join(str(error).split())
    except OSError as error:  # what the system does not let us read or write
        said = first_line(error)
    else:
        if code == _INTERRUPTED:
            print("roadint: stopped", file=sys.stderr)
        raise SystemExit(code if isinstance(code, int) else 0)
    print(f"roadint: {said}", file=sys.stderr)
    raise SystemExit(2)
