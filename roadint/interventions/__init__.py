"""Edits of hidden states: a file for every kind, and what kinds share."""
