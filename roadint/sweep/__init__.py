"""Sweeps: many runs of one recipe, trained and measured on development data, in a table."""
