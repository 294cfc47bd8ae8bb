// Half precision as the CPU kernels read and write it: float in registers.
#pragma once

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "common/simd.h"

namespace ocvtp::OCVTP_ISA {

using PartBits = uint32_t __attribute__((vector_size(register_bytes)));
using PartHalves = uint16_t __attribute__((vector_size(register_bytes / 2)));

// One register of floats from its bits, and from as many elements.
inline Part<float> with_bits(PartBits bits) {
  Part<float> value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <class E>
inline PartBits read_bits(const E* from) {
  // Unrolled, this is one instruction; `__builtin_convertvector` is four.
  uint32_t lanes[part_width<float>];
#pragma GCC unroll 16
  for (int64_t lane = 0; lane < part_width<float>; ++lane) lanes[lane] = from[lane].bits;
  PartBits bits;
  std::memcpy(&bits, lanes, sizeof bits);
  return bits;
}

inline Part<float> upcast(const BFloat16* from) { return with_bits(read_bits(from) << 16); }

inline Part<float> upcast(const Float16* from) {
#if defined(__AVX512F__)
  __m256i halves;
  std::memcpy(&halves, from, sizeof halves);
  return _mm512_cvtph_ps(halves);
#elif defined(__F16C__)
  __m128i halves;
  std::memcpy(&halves, from, sizeof halves);
  return _mm256_cvtph_ps(halves);
#else
  const PartBits bits = read_bits(from), sign = (bits & 0x8000) << 16;
  // Exponents count from -15 there, from -127 here; the largest means infinity or NaN.
  const Part<float> size = with_bits((bits & 0x7fff) << 13) * 0x1p112F;
  const PartBits endless = size >= 0x1p16F ? PartBits{} + 0x7f800000 : PartBits{};
  PartBits finite;
  std::memcpy(&finite, &size, sizeof finite);
  return with_bits(finite | endless | sign);
#endif
}

// One register of floats as bfloat16, to the nearest and of two such to the even one. In integers:
// the instruction for it takes subnormal elements for zero.
inline void narrow(BFloat16* to, Part<float> value) {
  PartBits bits;
  std::memcpy(&bits, &value, sizeof bits);
  bits = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  bits = value == value ? bits : PartBits{} + 0x7fc0;
  const auto halves = __builtin_convertvector(bits, PartHalves);
  std::memcpy(to, &halves, sizeof halves);
}

// `lanes` elements in the dtype that they are summed in, `fill` in the other lanes.
template <class E>
inline Vector<Acc<E>> load_acc(const E* from, int64_t lanes, Acc<E> fill = 0) {
  if constexpr (std::is_same_v<E, Acc<E>>) {
    return load_lanes(from, lanes, fill);
  } else {
    E some[width<float>] = {};
    if (lanes < width<float>) {
      std::memcpy(some, from, static_cast<size_t>(lanes) * sizeof(E));
      from = some;
    }
    Vector<float> value;
    Vector<float>::for_each_part(
        [&](auto i) { value.part[i] = upcast(from + i * part_width<float>); });
    if (lanes == width<float> || fill == 0) return value;
    float filled[width<float>];
    store(filled, value);
    return load_part(filled, lanes, fill);
  }
}

template <class E>
inline void store_acc(E* to, const Vector<Acc<E>>& value, int64_t lanes) {
  if constexpr (std::is_same_v<E, Acc<E>>) {
    store_lanes(to, value, lanes);
  } else {
    E some[width<float>];
    E* const whole = lanes < width<float> ? some : to;
    Vector<float>::for_each_part(
        [&](auto i) { narrow(whole + i * part_width<float>, value.part[i]); });
    if (whole == some) std::memcpy(to, some, static_cast<size_t>(lanes) * sizeof(E));
  }
}

}  // namespace ocvtp::OCVTP_ISA
