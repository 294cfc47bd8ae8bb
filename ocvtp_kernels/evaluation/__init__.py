"""Pruning within evaluation programs."""
