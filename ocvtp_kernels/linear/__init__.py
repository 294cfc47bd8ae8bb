"""A Linear with its LayerNorm, GELU and residual: the GEMM that encode and slots share."""
