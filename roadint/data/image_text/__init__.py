"""Rows with images: conversations, their tokens, and batches through the model's own processor."""
