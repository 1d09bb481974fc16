"""Prefix reuse: what the edit can't change is computed once, instead of at every step.

Two things stay the same while rotations train on a frozen causal model: everything below the lowest
edited layer, and the tokens before the first edited one, whose keys and values in the layers above
are all that later tokens see of them. One pass over the data (`recording`) stores both for each
example: the hidden states that enter the lowest layer that the edit reaches, from the first edited
token on, and those keys and values. A training step (`cache`) then runs the layers above, over the
edited token and what follows it. An edit of the last prompt token leaves a step the completion
alone; one of all tokens saves the layers below.
"""
