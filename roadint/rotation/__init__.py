"""The mathematics: rotations of pairs of dims, the bases of the pairs, and their parameters."""
