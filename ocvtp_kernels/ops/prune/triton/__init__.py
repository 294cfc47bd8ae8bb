"""`prune` on Triton kernels: the pipeline, its workspace and what no other op launches."""
