// A pick as one integer that orders as in the reference, by higher score and then lower id, so that
// a maximum is the same in every order. No pick is 0.
#pragma once

#include "common/device.cuh"

namespace ocvtp {

// NaN counts as -inf.
__device__ __forceinline__ uint64 pack_pick(float score, int token) {
  // -0 becomes 0, which it equals.
  const float number = score == score ? score + 0.0f : -infinity();
  const unsigned bits = __float_as_uint(number);
  const unsigned ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return static_cast<uint64>(ordered) << 32 | (0xffffffffu - static_cast<unsigned>(token));
}

// The score as an integer in the same order.
__device__ __forceinline__ unsigned pick_order(uint64 pick) {
  return static_cast<unsigned>(pick >> 32);
}

__device__ __forceinline__ int pick_token(uint64 pick) {
  return static_cast<int>(0xffffffffu - static_cast<unsigned>(pick));
}

__device__ __forceinline__ float pick_score(uint64 pick) {
  const unsigned ordered = pick_order(pick);
  return __uint_as_float(ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered);
}

}  // namespace ocvtp
