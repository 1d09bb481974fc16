"""Interventions inside pyvene: how they run, are placed in a model and are loaded."""
