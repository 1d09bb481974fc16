"""The benchmarks: `roadint bench train`, `compose`, `learn` and so on."""

import typer

from roadint.cli.bench.align import align
from roadint.cli.bench.compose import compose
from roadint.cli.bench.generate import generate
from roadint.cli.bench.gpu import gpu
from roadint.cli.bench.learn import learn
from roadint.cli.bench.linear import linear
from roadint.cli.bench.paper import paper
from roadint.cli.bench.pilot import pilot
from roadint.cli.bench.serve import serve
from roadint.cli.bench.train import train

app = typer.Typer(
    help="Measure roadint against pyvene and the bare model, on this machine in one run.",
    no_args_is_help=True,
)
for command in (train, generate, align, linear, learn, compose, paper, pilot, gpu, serve):
    app.command()(command)
