// Scores of any floating dtype as unsigned integers in the same order.
#pragma once

#include "common/device.cuh"

namespace ocvtp {

// Scores [B,n] of any IEEE layout, by their bits: exact in every dtype, bfloat16 before sm_80 too.
struct Scores {
  const void* data;
  int64 image_stride;  // in elements
  int bytes;           // of an element: 2, 4 or 8
  uint64 infinity;     // the bits of +infinity

  // Larger scores give larger integers; a NaN counts as -infinity, and -0 as 0.
  __device__ __forceinline__ uint64 order(int64 image, int index) const {
    const int64 at = image * image_stride + index;
    const uint64 bits = bytes == 2   ? static_cast<const unsigned short*>(data)[at]
                        : bytes == 4 ? static_cast<const unsigned*>(data)[at]
                                     : static_cast<const uint64*>(data)[at];
    const uint64 sign = static_cast<uint64>(1) << (8 * bytes - 1);
    const uint64 magnitude = bits & (sign - 1);
    if (magnitude > infinity) return sign - infinity;
    return bits & sign ? sign - magnitude : sign + magnitude;
  }
};

}  // namespace ocvtp
