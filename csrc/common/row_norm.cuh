// The statistics and the un-affined LayerNorm of a row, by a block.
#pragma once

#include "common/device.cuh"

namespace ocvtp {

constexpr int kNormThreads = 128;

// V consecutive elements, read and written as one word of at most 16 bytes.
template <class T, int V>
struct alignas(sizeof(T) * V) Elements {
  T element[V];
};

template <class T>
constexpr int kMaxElements = 16 / static_cast<int>(sizeof(T));

// Rows of a tensor whose leading dimensions fall into two: row r starts at
// (r / inner) * outer_stride + (r % inner) * inner_stride.
struct RowLayout {
  int64 inner;
  int64 outer_stride;
  int64 inner_stride;

  __device__ __forceinline__ int64 start(int64 row) const {
    return row / inner * outer_stride + row % inner * inner_stride;
  }
};

struct RowStatistics {
  float pivot;    // the mean as one float sum gives it
  float shift;    // what that sum lost: the mean is pivot + shift
  float inverse;  // 1 / deviation

  // Subtracting the pivot first is exact near the mean, however far the mean is from 0.
  __device__ __forceinline__ float normalise(float x) const {
    return (x - pivot - shift) * inverse;
  }
};

// Statistics of `width` values by a block; `read(i, values)` gives V floats from element i * V on.
// Two passes: squares of deviations, not the difference of two large sums.
template <int V, class Read>
__device__ __forceinline__ RowStatistics row_statistics(int width, float eps, float* scratch,
                                                        const Read& read) {
  const int packs = width / V;
  const int threads = static_cast<int>(blockDim.x);
  const float inverse_width = 1.0f / static_cast<float>(width);
  float values[V];
  float sum = 0.0f;
  for (int i = threadIdx.x; i < packs; i += threads) {
    read(i, values);
#pragma unroll
    for (int j = 0; j < V; ++j) sum += values[j];
  }
  RowStatistics statistics;
  statistics.pivot = block_sum(sum, scratch) * inverse_width;
  float lost = 0.0f, squares = 0.0f;
  for (int i = threadIdx.x; i < packs; i += threads) {
    read(i, values);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const float deviation = values[j] - statistics.pivot;
      lost += deviation;
      squares = fmaf(deviation, deviation, squares);
    }
  }
  statistics.shift = block_sum(lost, scratch) * inverse_width;
  const float variance =
      block_sum(squares, scratch) * inverse_width - statistics.shift * statistics.shift;
  // Not fmaxf, which would hide a NaN.
  statistics.inverse = 1.0f / sqrtf((variance < 0.0f ? 0.0f : variance) + eps);
  return statistics;
}

// One row of `width`, by a block: V divides width and the rows' starts.
template <class T, int V>
__device__ __forceinline__ RowStatistics normalise_row(const T* x, T* y, int width, float eps,
                                                       float* scratch) {
  using Word = Elements<T, V>;
  const Word* source = reinterpret_cast<const Word*>(x);
  Word* target = reinterpret_cast<Word*>(y);
  const auto read = [=](int i, float* values) {
    const Word word = source[i];
#pragma unroll
    for (int j = 0; j < V; ++j) values[j] = to_float(word.element[j]);
  };
  const RowStatistics statistics = row_statistics<V>(width, eps, scratch, read);
  for (int i = threadIdx.x; i < width / V; i += kNormThreads) {
    float values[V];
    read(i, values);
    Word word;
#pragma unroll
    for (int j = 0; j < V; ++j) word.element[j] = from_float<T>(statistics.normalise(values[j]));
    target[i] = word;
  }
  return statistics;
}

// Of a row x: its mean, its deviation sqrt(variance + eps), and layer_norm(x) . weight.
struct SlotStatistics {
  float mean, deviation, constant;
};

}  // namespace ocvtp
