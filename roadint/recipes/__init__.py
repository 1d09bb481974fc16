"""Recipes: everything that a run needs, in one YAML file or preset."""
