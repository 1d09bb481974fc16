"""Figures; each function returns a matplotlib Figure."""

from roadint.plots.bench import bench_figure, linear_figure
from roadint.plots.blocks import adapter_figure, block_figure
from roadint.plots.evaluation import (
    composition_figure,
    heat_figure,
    interference_figure,
    sweep_figure,
)
from roadint.plots.training import training_figure

__all__ = [
    "adapter_figure",
    "bench_figure",
    "block_figure",
    "composition_figure",
    "heat_figure",
    "interference_figure",
    "linear_figure",
    "sweep_figure",
    "training_figure",
]
