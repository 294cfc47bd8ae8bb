"""Pruning within serving engines."""
