"""The architecture of transformers models: layers, properties, outputs of layers."""
