"""Recipes: all settings of a run, in one YAML file or preset."""
