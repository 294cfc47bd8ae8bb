"""What all Triton kernels share: chips, launching, and arithmetic that Triton lacks."""
