"""What users write: subspaces, positions and compositions, from text to values and back."""
