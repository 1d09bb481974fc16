"""Training: recipes, the trainer, and `roadint.train`."""
