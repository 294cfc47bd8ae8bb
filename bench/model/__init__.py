"""The instruction model of the Triton kernels: how long their launches take, and projections."""
