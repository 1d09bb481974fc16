"""The mathematics: rotations of pairs of dimensions, the bases in which pairs are formed, and the parameters behind them."""
