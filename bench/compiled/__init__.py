"""What the kernels compile to, read from their binaries and held against budgets."""
