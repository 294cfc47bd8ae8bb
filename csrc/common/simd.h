// Vectors of 64 bytes by the compiler's own vector types: the same lanes, and so the same order of
// sums, whatever instruction set a file is compiled for. Each set has a namespace of its own, since
// the linker would make one of functions of the same name.
#pragma once

#include <cstdint>
#include <cstring>

#ifndef OCVTP_ISA
#define OCVTP_ISA portable
#endif

namespace ocvtp::OCVTP_ISA {

template <class T>
struct Simd;

template <>
struct Simd<float> {
  using Vector = float __attribute__((vector_size(64)));
  using Integers = int32_t __attribute__((vector_size(64)));
  static constexpr int64_t width = 16;
};

template <>
struct Simd<double> {
  using Vector = double __attribute__((vector_size(64)));
  using Integers = int64_t __attribute__((vector_size(64)));
  static constexpr int64_t width = 8;
};

template <class T>
using Vector = typename Simd<T>::Vector;
template <class T>
using Integers = typename Simd<T>::Integers;
template <class T>
inline constexpr int64_t width = Simd<T>::width;

template <class T>
inline Vector<T> splat(T value) {
  return value - Vector<T>{};
}

template <class T>
inline Vector<T> load(const T* from) {
  Vector<T> value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

// The first `count` lanes from memory, `fill` in the others.
template <class T>
inline Vector<T> load_part(const T* from, int64_t count, T fill) {
  Vector<T> value = splat(fill);
  std::memcpy(&value, from, static_cast<size_t>(count) * sizeof(T));
  return value;
}

template <class T>
inline void store(T* to, Vector<T> value) {
  std::memcpy(to, &value, sizeof value);
}

template <class T>
inline void store_part(T* to, Vector<T> value, int64_t count) {
  std::memcpy(to, &value, static_cast<size_t>(count) * sizeof(T));
}

// Lane by lane from both halves to the middle: one order for every instruction set.
template <class T>
inline T sum_lanes(Vector<T> value) {
  T lanes[width<T>];
  store(lanes, value);
  for (int64_t half = width<T> / 2; half > 0; half /= 2)
    for (int64_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  return lanes[0];
}

template <class T>
inline T max_lanes(Vector<T> value) {
  T lanes[width<T>];
  store(lanes, value);
  for (int64_t half = width<T> / 2; half > 0; half /= 2)
    for (int64_t lane = 0; lane < half; ++lane)
      lanes[lane] = lanes[lane + half] > lanes[lane] ? lanes[lane + half] : lanes[lane];
  return lanes[0];
}

// Calls body(offset, lanes) over a row: whole vectors, then what is left of it.
template <class T, class Body>
inline void for_each_vector(int64_t size, const Body& body) {
  int64_t at = 0;
  for (; at + width<T> <= size; at += width<T>) body(at, width<T>);
  if (at < size) body(at, size - at);
}

// As load_part and store_part, but whole vectors go the short way.
template <class T>
inline Vector<T> load_lanes(const T* from, int64_t lanes, T fill = T(0)) {
  return lanes == width<T> ? load(from) : load_part(from, lanes, fill);
}

template <class T>
inline void store_lanes(T* to, Vector<T> value, int64_t lanes) {
  if (lanes == width<T>)
    store(to, value);
  else
    store_part(to, value, lanes);
}

}  // namespace ocvtp::OCVTP_ISA
