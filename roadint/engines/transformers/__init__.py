"""The engine that runs transformers' own models, with hooks of each call's own."""
