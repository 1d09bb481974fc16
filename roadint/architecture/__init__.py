"""Where things are in a transformers model, what the model is like, and what its layers return."""
