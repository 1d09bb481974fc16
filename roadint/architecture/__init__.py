"""Where things are in a transformers model: its layers, their components, its width, its device."""
