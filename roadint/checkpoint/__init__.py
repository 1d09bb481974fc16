"""Checkpoints: a safetensors file and a JSON file that say everything, never pickle.

The JSON holds the base model's id and width, the arguments of every intervention and adapter, the
template, versions, a summary of the training, and one SHA-256 over both files, so that a truncated
or altered checkpoint is refused before any of it is used. Nothing here needs a base model, unless
it is asked to fit one.
"""
