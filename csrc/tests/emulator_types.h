// CUDA's words, types and single-thread functions for g++: what a device header needs to compile.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace ocvtp::emulator {

template <class To, class From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs equal sizes");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// Round to nearest even, as the hardware does, subnormals, infinities and NaN included.
inline std::uint16_t half_bits(float value) {
  const auto bits = bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return sign | 0x7fffu;
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;
  if (magnitude < 0x38800000u) {
    // Adding 2^-1 makes the float unit round at the last place of a subnormal half, 2^-24.
    const float aligned = bit_cast<float>(magnitude) + 0.5f;
    return sign | static_cast<std::uint16_t>(bit_cast<std::uint32_t>(aligned) - 0x3f000000u);
  }
  const std::uint32_t odd = (magnitude >> 13) & 1u;
  return sign | static_cast<std::uint16_t>((magnitude - 0x38000000u + 0xfffu + odd) >> 13);
}

inline float half_value(std::uint16_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
  const std::uint32_t magnitude = bits & 0x7fffu;
  if (magnitude >= 0x7c00u)
    return bit_cast<float>(sign | 0x7f800000u | (magnitude << 13 & 0x7fffffu));
  if (magnitude >= 0x400u) return bit_cast<float>(sign | ((magnitude << 13) + 0x38000000u));
  const float value = static_cast<float>(magnitude) * 0x1p-24f;
  return sign ? -value : value;
}

inline std::uint16_t bfloat16_bits(float value) {
  const auto bits = bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

}  // namespace ocvtp::emulator

struct __half {
  std::uint16_t bits;
};
struct __nv_bfloat16 {
  std::uint16_t bits;
};

inline __half __float2half_rn(float x) { return {ocvtp::emulator::half_bits(x)}; }
inline float __half2float(__half x) { return ocvtp::emulator::half_value(x.bits); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return {ocvtp::emulator::bfloat16_bits(x)}; }
inline float __bfloat162float(__nv_bfloat16 x) {
  return ocvtp::emulator::bit_cast<float>(static_cast<std::uint32_t>(x.bits) << 16);
}

inline float __int_as_float(int x) { return ocvtp::emulator::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return ocvtp::emulator::bit_cast<float>(x); }
inline int __float_as_int(float x) { return ocvtp::emulator::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return ocvtp::emulator::bit_cast<unsigned>(x); }
inline long long __double_as_longlong(double x) { return ocvtp::emulator::bit_cast<long long>(x); }

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __fdividef(float x, float y) { return x / y; }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }

template <class T>
inline T __ldg(const T* address) {
  return *address;
}

template <class T>
constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
constexpr T max(T a, T b) {
  return a < b ? b : a;
}

// One fiber runs at a time, so plain reads and writes are atomic.
template <class T>
inline T atomicAdd(T* address, T value) {
  const T old = *address;
  *address = static_cast<T>(old + value);
  return old;
}
template <class T>
inline T atomicMax(T* address, T value) {
  const T old = *address;
  if (old < value) *address = value;
  return old;
}
template <class T>
inline T atomicMin(T* address, T value) {
  const T old = *address;
  if (value < old) *address = value;
  return old;
}
template <class T>
inline T atomicExch(T* address, T value) {
  const T old = *address;
  *address = value;
  return old;
}
template <class T>
inline T atomicOr(T* address, T value) {
  const T old = *address;
  *address = static_cast<T>(old | value);
  return old;
}
template <class T>
inline T atomicCAS(T* address, T expected, T value) {
  const T old = *address;
  if (old == expected) *address = value;
  return old;
}

inline void __threadfence() {}
inline void __threadfence_block() {}
