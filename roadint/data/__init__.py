"""Rows of instruction and output: where they come from, and how a batch is made of them."""
