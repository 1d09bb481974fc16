"""Data: rows of instruction and output, their sources, prompts, tokens and batches."""
