"""The engine that runs transformers' own models: every call has a view of the model with hooks."""
