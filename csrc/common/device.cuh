// What every CUDA kernel here shares: element types, conversions, reductions in a fixed order.
// Compiles under nvcc, NVRTC (no host headers) and, through the emulator, g++.
#pragma once

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#include <cuda_fp16.h>
#else
#include "tests/emulator.h"
#endif

// 0 before sm_80, which has no bf16 arithmetic; the bindings then refuse the dtype.
#ifndef OCVTP_BF16
#define OCVTP_BF16 1
#endif
#if OCVTP_BF16 && (defined(__CUDACC__) || defined(__CUDACC_RTC__))
#include <cuda_bf16.h>
#endif

// Dynamic shared memory, aligned to 128 bytes: OCVTP_SHARED(float, tile) declares `float* tile`.
#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define OCVTP_SHARED(type, name)                                       \
  extern __shared__ __align__(128) unsigned char ocvtp_shared_bytes[]; \
  type* const name = reinterpret_cast<type*>(ocvtp_shared_bytes)
#else
#define OCVTP_SHARED(type, name) \
  type* const name = reinterpret_cast<type*>(ocvtp::emulator::machine.shared.data())
#endif

namespace ocvtp {

// NVRTC has no <cstdint>.
using int64 = long long;
using uint64 = unsigned long long;

using half = ::__half;
#if OCVTP_BF16
using bfloat16 = ::__nv_bfloat16;
#endif

constexpr int kWarpSize = 32;
constexpr unsigned kFullWarp = 0xffffffffu;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(half x) { return __half2float(x); }
#if OCVTP_BF16
__device__ __forceinline__ float to_float(bfloat16 x) { return __bfloat162float(x); }
#endif

// Rounds to nearest even into T, one of float, half, bfloat16.
template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ half from_float<half>(float x) {
  return __float2half_rn(x);
}
#if OCVTP_BF16
template <>
__device__ __forceinline__ bfloat16 from_float<bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
#endif

__device__ __forceinline__ float infinity() { return __int_as_float(0x7f800000); }

template <class T>
__host__ __device__ constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

// The sum over a warp, in every lane. The butterfly adds the same pairs whatever the data.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int step = kWarpSize / 2; step > 0; step /= 2) x += __shfl_xor_sync(kFullWarp, x, step);
  return x;
}

// The maximum over a warp, in every lane; NaN only if all are.
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int step = kWarpSize / 2; step > 0; step /= 2)
    x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, step));
  return x;
}

// The sum over a block of whole warps along x, in every thread. `scratch` is one shared float per
// warp; it may be used again at once.
__device__ __forceinline__ float block_sum(float x, float* scratch) {
  const int warps = static_cast<int>(blockDim.x) / kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  x = warp_sum(x);
  if (warps == 1) return x;
  if (threadIdx.x % kWarpSize == 0) scratch[warp] = x;
  __syncthreads();
  float total = 0.0f;
  for (int i = 0; i < warps; ++i) total += scratch[i];
  __syncthreads();
  return total;
}

}  // namespace ocvtp
