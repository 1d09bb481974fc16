"""RoAd on linear layers: finetuned, merged, and served with an adapter of its own for every row of a batch."""
