// How a competition is cut into blocks, and how the parts of one slot become its mean.
#pragma once

#include "common/slot_logits.cuh"

namespace ocvtp {

constexpr int kMeanThreads = 128;
constexpr int kMostGroups = 18;  // of tokens: one tile each at 576 tokens

// Attention goes through T on its way to the matrix product. A power of two keeps that of a weak
// slot off half's subnormal numbers, which end at 6e-8.
template <class T>
__host__ __device__ constexpr float share_scale() {
  return 1.0f;
}
template <>
__host__ __device__ constexpr float share_scale<half>() {
  return 16384.0f;
}

struct Cut {
  int slot_blocks;
  int chunks;
  int groups;
  int tiles_per_group;
  bool whole;  // a block takes all groups of tokens, else one
  __host__ __device__ int shares() const { return whole ? 1 : groups; }
};

// A v / (mass + eps), from A v as the matrix product leaves it.
template <class T>
__device__ __forceinline__ float mean_of(float total, float mass, float eps) {
  return total * (1.0f / share_scale<T>()) / (mass + eps);
}

template <class T>
struct alignas(4 * sizeof(T)) FourOf {
  T x[4];
};

// Adds up the shares in order: updates A v / (mass + eps) [B, K, E] and mass sum_n A [B, K]. A
// block of kMeanThreads takes a slot of an image, a thread four neighbouring channels.
template <class T>
__global__ void __launch_bounds__(kMeanThreads, 8)
    mean_kernel(const float* partial, const float* partial_mass, const Cut cut, const int num_slots,
                const int slots, const int width, const int chunk_width, const float eps,
                T* updates, float* mass) {
  constexpr int kAtOnce = 6;  // loads on their way
  __shared__ float masses[kMostGroups];
  const int shares = cut.shares();
  const int64 image = blockIdx.x / num_slots;
  const int slot = static_cast<int>(blockIdx.x % num_slots);
  const int64 first_part = (image * cut.slot_blocks + slot / slots) * cut.chunks;
  const int row = slot % slots;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < shares) masses[thread] = partial_mass[(first_part * shares + thread) * slots + row];
  __syncthreads();
  float total_mass = 0.0f;
  for (int share = 0; share < shares; ++share) total_mass += masses[share];
  if (thread == 0) mass[blockIdx.x] = total_mass;
  const int64 stride = static_cast<int64>(slots) * chunk_width;
  T* const to = updates + static_cast<int64>(blockIdx.x) * width;
  for (int column = 4 * thread; column < width; column += 4 * kMeanThreads) {
    // Chunks are multiples of 4 wide, and whole in the workspace.
    const int64 part = first_part + column / chunk_width;
    const float* from =
        partial + (part * shares * slots + row) * chunk_width + column % chunk_width;
    Four total = {{0.0f, 0.0f, 0.0f, 0.0f}};
#pragma unroll 1
    for (int share = 0; share < shares; share += kAtOnce, from += kAtOnce * stride) {
      Four four[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        four[i] = {{0.0f, 0.0f, 0.0f, 0.0f}};
        if (share + i < shares) four[i] = load_four(from + i * stride);
      }
      // A sum that began at 0 is never -0, so that zeros at the end change nothing.
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
