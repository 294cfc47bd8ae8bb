// The residual of slots, their LayerNorm, and the statistics that the GRU and the logits use. One
// block a row.
#pragma once

#include "common/row_norm.cuh"

namespace ocvtp {

// Writes the statistics of a row; `read(i)` is its element i before rounding.
template <class T, class Read>
__device__ __forceinline__ void put_statistics(const RowStatistics& of, const T* weight, int width,
                                               float* scratch, SlotStatistics* to,
                                               const Read& read) {
  float dot = 0.0f;
#pragma unroll 2
  for (int i = threadIdx.x; i < width; i += kNormThreads)
    dot = fmaf(of.normalise(read(i)), to_float(weight[i]), dot);
  dot = block_sum(dot, scratch);
  if (threadIdx.x == 0) *to = {of.pivot + of.shift, 1.0f / of.inverse, dot};
}

// The layer_norm of tokens `layout` [R,width] by blocks 0 to R - 1; by the others that of slots
// [S,width], and their statistics [S]. Grid R + S, block kNormThreads. V divides width and every
// row start.
template <class T, int V>
__global__ void __launch_bounds__(kNormThreads)
    start_kernel(const T* __restrict__ tokens, T* __restrict__ x, RowLayout layout, int64 rows,
                 const T* __restrict__ slots, const T* __restrict__ weight, T* __restrict__ normed,
                 SlotStatistics* __restrict__ statistics, int width, float eps) {
  __shared__ float scratch[kNormThreads / kWarpSize];
  const int64 row = blockIdx.x;
  const bool of_tokens = row < rows;
  const int64 slot = row - rows;
  const T* from = of_tokens ? tokens + layout.start(row) : slots + slot * width;
  T* to = of_tokens ? x + row * width : normed + slot * width;
  const RowStatistics of = normalise_row<T, V>(from, to, width, eps, scratch);
  if (of_tokens) return;
  put_statistics(of, weight, width, scratch, statistics + slot,
                 [=](int i) { return to_float(from[i]); });
}

// sum = x + y; of the unrounded sum its layer_norm, in T, and its statistics: x, y [R,width] with
// row strides -> sum, normed [R,width], statistics [R]. Grid R, block kNormThreads, dynamic shared
// memory of `width` floats.
template <class T>
__global__ void __launch_bounds__(kNormThreads)
    norm_slots_kernel(const float* __restrict__ x, const T* __restrict__ y,
                      const T* __restrict__ weight, float* __restrict__ sum, T* __restrict__ normed,
                      SlotStatistics* __restrict__ statistics, int64 x_stride, int64 y_stride,
                      int width, float eps) {
  __shared__ float scratch[kNormThreads / kWarpSize];
  OCVTP_SHARED(float, total);
  const int64 row = blockIdx.x;
  for (int i = threadIdx.x; i < width; i += kNormThreads)
    sum[row * width + i] = total[i] = x[row * x_stride + i] + to_float(y[row * y_stride + i]);
  // Each thread reads only what it wrote, so no barrier is needed.
  const auto read = [=](int i, float* values) { values[0] = total[i]; };
  const RowStatistics of = row_statistics<1>(width, eps, scratch, read);
  for (int i = threadIdx.x; i < width; i += kNormThreads)
    normed[row * width + i] = from_float<T>(of.normalise(total[i]));
  put_statistics(of, weight, width, scratch, statistics + row, [=](int i) { return total[i]; });
}

}  // namespace ocvtp
