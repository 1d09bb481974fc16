"""Prefix reuse: what the edit can't change is computed once, instead of at every step.

Two things stay the same while rotations train on a frozen causal model: everything below the lowest
edited layer, and the tokens before the first edited one, of which later tokens see only keys and
values. One pass over the data (`recording`) stores both for every example: the hidden states that
enter the lowest layer that the edit reaches, from the first edited token on, and the keys and
values of the tokens before. A training step (`cache`) then runs the layers above on the other
tokens. With an edit of the last prompt token, a step computes only the completion; with an edit of
all tokens, it saves the layers below.
"""
