"""Edits of hidden states: one file for each kind, and what all kinds share."""
