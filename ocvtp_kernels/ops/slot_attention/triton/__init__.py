"""Slot attention on Triton kernels: launchers (forward, backward) and their device code."""
