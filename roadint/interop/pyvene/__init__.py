"""Conversion to pyvene's configuration, and loading of folders that pyvene saved."""

from roadint.interop.pyvene.config import pyvene_config
from roadint.interop.pyvene.saved import load, load_model_values, read_tensors, state_of
from roadint.interventions.pyvene.placing import register_model

__all__ = [
    "load",
    "load_model_values",
    "pyvene_config",
    "read_tensors",
    "register_model",
    "state_of",
]
