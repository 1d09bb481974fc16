"""What users write: subspaces, positions and compositions, as text and as values."""
