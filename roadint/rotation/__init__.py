"""The mathematics: rotations of pairs of dims, bases of the pairs, parameters."""
