// The exact GELU of a GEMM's result and its bias, in place.
#pragma once

#include "common/row_norm.cuh"

namespace ocvtp {

constexpr int kGeluThreads = 128;

// x Phi(x) = x / 2 (1 + erf(x / sqrt 2)). Source: Hendrycks and Gimpel 2016.
__device__ __forceinline__ float gelu(float x) {
  return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
}

// x = gelu(x + bias): x `layout` [R,width], bias [width]. Grid R, block kGeluThreads.
// V divides width and every row start.
template <class T, int V>
__global__ void __launch_bounds__(kGeluThreads)
    bias_gelu_kernel(T* __restrict__ x, const T* __restrict__ bias, RowLayout layout, int width) {
  using Word = Elements<T, V>;
  Word* row = reinterpret_cast<Word*>(x + layout.start(blockIdx.x));
  const Word* shift = reinterpret_cast<const Word*>(bias);
  for (int i = threadIdx.x; i < width / V; i += kGeluThreads) {
    Word word = row[i];
    const Word add = shift[i];
#pragma unroll
    for (int j = 0; j < V; ++j)
      word.element[j] = from_float<T>(gelu(to_float(word.element[j]) + to_float(add.element[j])));
    row[i] = word;
  }
}

}  // namespace ocvtp
