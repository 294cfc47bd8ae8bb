"""Greedy selection, one token after the other: what the training-free pruners share."""
