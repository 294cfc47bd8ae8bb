"""The table of selectors: every method and the OC-pruner on the same tokens at the same budget."""
