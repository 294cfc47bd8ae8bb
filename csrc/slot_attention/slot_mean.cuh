// How slot attention is split over blocks, and the sum of the splits.
#pragma once

#include "common/slot_logits.cuh"

namespace ocvtp {

constexpr int kMeanThreads = 128;
constexpr int kMaxSplits = 18;  // of tokens: one tile each at 576 tokens

// Attention is rounded to T before the matrix product. Scaled by a power of two, small values are
// not subnormal in half.
template <class T>
__host__ __device__ constexpr float weight_scale() {
  return 1.0f;
}
template <>
__host__ __device__ constexpr float weight_scale<half>() {
  return 16384.0f;
}

struct SplitPlan {
  int slot_blocks;
  int chunks;
  int num_splits;
  int tiles_per_split;
  bool single_block;  // a block takes all splits, else one
  __host__ __device__ int split_blocks() const { return single_block ? 1 : num_splits; }
};

// A v / (mass + eps), from the scaled A v of the matrix product.
template <class T>
__device__ __forceinline__ float mean_of(float total, float mass, float eps) {
  return total * (1.0f / weight_scale<T>()) / (mass + eps);
}

template <class T>
struct alignas(4 * sizeof(T)) FourOf {
  T x[4];
};

// Adds up the splits in order: updates A v / (mass + eps) [B, K, E] and mass sum_n A [B, K]. A
// block of kMeanThreads takes a slot of an image, a thread four neighbouring channels.
template <class T>
__global__ void __launch_bounds__(kMeanThreads, 8)
    mean_kernel(const float* partial_acc, const float* partial_mass, const SplitPlan plan,
                const int num_slots, const int slots, const int width, const int chunk_width,
                const float eps, T* updates, float* mass) {
  constexpr int kAtOnce = 6;  // loads in flight
  __shared__ float masses[kMaxSplits];
  const int num_splits = plan.split_blocks();
  const int64 image = blockIdx.x / num_slots;
  const int slot = static_cast<int>(blockIdx.x % num_slots);
  const int64 first_out_block = (image * plan.slot_blocks + slot / slots) * plan.chunks;
  const int row = slot % slots;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < num_splits)
    masses[thread] = partial_mass[(first_out_block * num_splits + thread) * slots + row];
  __syncthreads();
  float total_mass = 0.0f;
  for (int split = 0; split < num_splits; ++split) total_mass += masses[split];
  if (thread == 0) mass[blockIdx.x] = total_mass;
  const int64 stride = static_cast<int64>(slots) * chunk_width;
  T* const to = updates + static_cast<int64>(blockIdx.x) * width;
  for (int column = 4 * thread; column < width; column += 4 * kMeanThreads) {
    // Chunks are multiples of 4 wide, and not cut off in the workspace.
    const int64 out_block = first_out_block + column / chunk_width;
    const float* from =
        partial_acc + (out_block * num_splits * slots + row) * chunk_width + column % chunk_width;
    Four total = {{0.0f, 0.0f, 0.0f, 0.0f}};
#pragma unroll 1
    for (int split = 0; split < num_splits; split += kAtOnce, from += kAtOnce * stride) {
      Four four[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        four[i] = {{0.0f, 0.0f, 0.0f, 0.0f}};
        if (split + i < num_splits) four[i] = load_four(from + i * stride);
      }
      // A sum that began at 0 is never -0, so adding zeros does not change it.
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) total.x[j] += four[i].x[j];
    }
    FourOf<T> mean;
#pragma unroll
    for (int i = 0; i < 4; ++i) mean.x[i] = from_float<T>(mean_of<T>(total.x[i], total_mass, eps));
    if (width % 4 == 0)
      *reinterpret_cast<FourOf<T>*>(to + column) = mean;
    else
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (column + i < width) to[column + i] = mean.x[i];
  }
}

}  // namespace ocvtp
