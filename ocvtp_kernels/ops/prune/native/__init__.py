"""`prune` on the native kernels, C++ and CUDA C++: the pipeline and its stages."""
