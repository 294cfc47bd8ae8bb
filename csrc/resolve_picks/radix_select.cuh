// The tokens at the threshold of a budget: a radix selection by one block, in integers.
#pragma once

#include "common/packed_picks.cuh"
#include "resolve_picks/ordered_scores.cuh"

namespace ocvtp {

constexpr int kResolveThreads = 512;
constexpr unsigned short kUnpicked = 0xffff;

// The tokens among which the threshold is, in the order of `major`, then `minor`, then id.
struct Candidates {
  const unsigned short* best;
  const uint64* slot_picks;  // packed, of each slot; null where `scores` has its peak
  Scores scores;
  int64 image;
  int top_k;
  bool among_picked;  // else among the unpicked

  __device__ __forceinline__ bool contains(int token) const {
    return (best[token] != kUnpicked) == among_picked;
  }
  __device__ __forceinline__ uint64 major(int token) const {
    if (by_packed()) return pick_order(slot_picks[best[token]]);
    return scores.data ? scores.order(image, among_picked ? best[token] / top_k : token) : 0;
  }
  // The lower picks of a slot rank lower; among the unpicked there is no difference.
  __device__ __forceinline__ unsigned minor(int token) const {
    return among_picked ? static_cast<unsigned>(top_k - 1 - best[token] % top_k) : 0u;
  }
  __device__ __forceinline__ int major_digits() const {
    return by_packed() ? 4 : scores.data ? scores.bytes : 0;
  }
  __device__ __forceinline__ int minor_digits() const { return among_picked && top_k > 1 ? 2 : 0; }

 private:
  __device__ __forceinline__ bool by_packed() const {
    return slot_picks != nullptr && among_picked;
  }
};

// Tokens above it are kept, and the first `ties` of those equal to it.
struct Threshold {
  uint64 major;
  unsigned minor;
  int ties;
};

struct RadixState {
  int histogram[256];
  int digit, remaining;
  int warp_total[kResolveThreads / kWarpSize];
};

// The sum over lower threads, and over all of them in `total`, of two 16-bit counts at once.
__device__ __forceinline__ int exclusive_scan(int value, RadixState& shared, int& total) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  int upto = value;
#pragma unroll
  for (int step = 1; step < kWarpSize; step *= 2) {
    const int other = __shfl_up_sync(kFullWarp, upto, step);
    if (lane >= step) upto += other;
  }
  if (lane == kWarpSize - 1) shared.warp_total[warp] = upto;
  __syncthreads();
  int before = 0;
  total = 0;
  for (int i = 0; i < kResolveThreads / kWarpSize; ++i) {
    if (i < warp) before += shared.warp_total[i];
    total += shared.warp_total[i];
  }
  __syncthreads();
  return before + upto - value;
}

// Finds, in the histogram of one digit, the digit at which `wanted` is reached from the top, and
// how many of it are wanted. By one warp: a lane has eight digits, lane 0 the largest.
__device__ __forceinline__ void find_digit(RadixState& shared, int wanted) {
  const int lane = threadIdx.x;
  int mine = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) mine += shared.histogram[255 - 8 * lane - i];
  int upto = mine;
#pragma unroll
  for (int step = 1; step < kWarpSize; step *= 2) {
    const int other = __shfl_up_sync(kFullWarp, upto, step);
    if (lane >= step) upto += other;
  }
  int remaining = wanted - (upto - mine);
  if (remaining <= 0 || remaining > mine) return;
  for (int i = 0; i < 8; ++i) {
    const int digit = 255 - 8 * lane - i;
    if (remaining <= shared.histogram[digit]) {
      shared.digit = digit;
      shared.remaining = remaining;
      return;
    }
    remaining -= shared.histogram[digit];
  }
}

// The threshold that keeps `wanted` >= 1 tokens: a radix selection from the highest byte down.
__device__ __forceinline__ Threshold find_threshold(const Candidates& candidates, int num_tokens,
                                                    int wanted, RadixState& shared) {
  Threshold threshold = {0, 0, wanted};
  uint64 major_known = 0;
  unsigned minor_known = 0;
  const int majors = candidates.major_digits(), digits = majors + candidates.minor_digits();
  for (int step = 0; step < digits; ++step) {
    const bool in_major = step < majors;
    const int shift = 8 * ((in_major ? majors : digits) - 1 - step);
    for (int i = threadIdx.x; i < 256; i += kResolveThreads) shared.histogram[i] = 0;
    __syncthreads();
    for (int token = threadIdx.x; token < num_tokens; token += kResolveThreads) {
      if (!candidates.contains(token)) continue;
      const uint64 major = candidates.major(token);
      const unsigned minor = candidates.minor(token);
      if ((major ^ threshold.major) & major_known) continue;
      if ((minor ^ threshold.minor) & minor_known) continue;
      const unsigned digit = in_major ? static_cast<unsigned>(major >> shift) : minor >> shift;
      atomicAdd(&shared.histogram[digit & 255u], 1);
    }
    __syncthreads();
    if (threadIdx.x < kWarpSize) find_digit(shared, threshold.ties);
    __syncthreads();
    if (in_major) {
      threshold.major |= static_cast<uint64>(shared.digit) << shift;
      major_known |= static_cast<uint64>(255) << shift;
    } else {
      threshold.minor |= static_cast<unsigned>(shared.digit) << shift;
      minor_known |= 255u << shift;
    }
    threshold.ties = shared.remaining;
  }
  return threshold;
}

}  // namespace ocvtp
