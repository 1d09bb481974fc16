"""The command line of roadint: results on stdout (tables, or --json), the rest on stderr."""

import logging
import os
import sys
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
from roadint.cli.serve import serve
from roadint.cli.sweep import sweep
from roadint.cli.train import train
from roadint.errors import RoadError, first_line
from roadint.version import __version__

app = typer.Typer(
    help="Learn, compose and inspect rotations of subspaces of a language model's hidden states.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(train)
app.command()(generate)
app.command(name="eval")(evaluate)
app.command()(inspect)
app.command()(merge)
app.command()(export)
app.command(name="import")(import_)
app.command()(sweep)
app.add_typer(bench, name="bench")
app.command()(demo)
app.command()(serve)

# Typer's errors of usage, from click or from the copy of it that newer ones bring.
_WrongUse: Any = typer.BadParameter.__mro__[2]


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Learn, compose and inspect rotations of subspaces of a language model's hidden states."""
    if show:
        print(__version__)


def main() -> None:
    """Run the command line; bad input ends it with exit code 2 and one line."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.basicConfig(format="%(message)s")
    logging.getLogger("roadint").setLevel(logging.INFO)
    try:
        code = app(standalone_mode=False)
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
        raise SystemExit(code if isinstance(code, int) else 0)
    print(f"roadint: {said}", file=sys.stderr)
    raise SystemExit(2)
