// Rows to mean 0 and deviation 1. One block a row.
#pragma once

#include "common/row_norm.cuh"

namespace ocvtp {

// y = (x - mean) / sqrt(variance + eps) for every row: x `layout` [R,width] -> y [R,width].
// Grid R, block kNormThreads. V divides width and every row start.
template <class T, int V>
__global__ void __launch_bounds__(kNormThreads)
    layer_norm_kernel(const T* __restrict__ x, T* __restrict__ y, RowLayout layout, int width,
                      float eps) {
  __shared__ float scratch[kNormThreads / kWarpSize];
  const int64 row = blockIdx.x;
  normalise_row<T, V>(x + layout.start(row), y + row * width, width, eps, scratch);
}

}  // namespace ocvtp
