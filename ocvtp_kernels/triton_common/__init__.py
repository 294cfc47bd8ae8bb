"""What all Triton kernels share: architectures, launching, and arithmetic that Triton lacks."""
