"""Figures: every function takes a report, a log or values and returns a matplotlib Figure."""

from roadint.plots.bench import bench_figure
from roadint.plots.blocks import adapter_figure, block_figure
from roadint.plots.compose import compose_figure
from roadint.plots.evaluation import composition_figure, interference_figure
from roadint.plots.heat import heat_figure
from roadint.plots.learn import learn_figure
from roadint.plots.linear import linear_figure
from roadint.plots.paper import throughput_figure, training_cost_figure
from roadint.plots.pilot import pilot_figure
from roadint.plots.serve import serve_figure
from roadint.plots.sweep import changes_figure, sweep_figure
from roadint.plots.training import training_figure

__all__ = [
    "adapter_figure",
    "bench_figure",
    "block_figure",
    "changes_figure",
    "compose_figure",
    "composition_figure",
    "heat_figure",
    "interference_figure",
    "learn_figure",
    "linear_figure",
    "pilot_figure",
    "serve_figure",
    "sweep_figure",
    "throughput_figure",
    "training_cost_figure",
    "training_figure",
]
