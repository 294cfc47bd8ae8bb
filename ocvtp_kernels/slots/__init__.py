"""Slot Attention: slots compete for tokens, take their weighted means and update."""
