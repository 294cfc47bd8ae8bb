// Vectors of 64 bytes, in as many registers as the instruction set needs: the same lanes, and so
// the same order of sums, on all of them. Each set has its own namespace: of inline functions with
// one name the linker would keep only one.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "common/kernel.h"

namespace ocvtp::OCVTP_ISA {

#if defined(__AVX512F__)
inline constexpr int64_t register_bytes = 64;
#elif defined(__AVX2__)
inline constexpr int64_t register_bytes = 32;
#else
inline constexpr int64_t register_bytes = 16;
#endif

template <class T>
struct Simd;

template <>
struct Simd<float> {
  using Part = float __attribute__((vector_size(register_bytes)));
  using PartIntegers = int32_t __attribute__((vector_size(register_bytes)));
  using Quad = float __attribute__((vector_size(16)));
};

template <>
struct Simd<double> {
  using Part = double __attribute__((vector_size(register_bytes)));
  using PartIntegers = int64_t __attribute__((vector_size(register_bytes)));
  using Quad = double __attribute__((vector_size(32)));
};

// What one register holds.
template <class T>
using Part = typename Simd<T>::Part;
template <class T>
using PartIntegers = typename Simd<T>::PartIntegers;
template <class T>
inline constexpr int64_t width = 64 / int64_t(sizeof(T));
template <class T>
inline constexpr int64_t part_width = register_bytes / int64_t(sizeof(T));

template <class T>
struct Vector;

template <class T, class Function, class... Vectors>
inline Vector<T> by_parts(const Function& function, const Vectors&... x);

// Not a vector type of 64 bytes: where no register holds one, GCC keeps each step in memory.
template <class T>
struct Vector {
  static constexpr size_t parts = 64 / register_bytes;

  Vector() = default;
  Vector(T value) {
    for_each_part([&](auto i) { part[i] = value - Part<T>{}; });
  }

  // body(0), body(1), …, each a constant, so that parts stay in registers.
  template <class Body>
  static void for_each_part(const Body& body) {
    for_each_part(body, std::make_index_sequence<parts>{});
  }

  friend Vector operator+(const Vector& a, const Vector& b) {
    return by_parts<T>([](Part<T> x, Part<T> y) -> Part<T> { return x + y; }, a, b);
  }
  friend Vector operator-(const Vector& a, const Vector& b) {
    return by_parts<T>([](Part<T> x, Part<T> y) -> Part<T> { return x - y; }, a, b);
  }
  friend Vector operator*(const Vector& a, const Vector& b) {
    return by_parts<T>([](Part<T> x, Part<T> y) -> Part<T> { return x * y; }, a, b);
  }
  friend Vector operator/(const Vector& a, const Vector& b) {
    return by_parts<T>([](Part<T> x, Part<T> y) -> Part<T> { return x / y; }, a, b);
  }
  Vector& operator+=(const Vector& other) { return *this = *this + other; }

  Part<T> part[parts];

 private:
  template <class Body, size_t... i>
  static void for_each_part(const Body& body, std::index_sequence<i...>) {
    (body(std::integral_constant<size_t, i>{}), ...);
  }
};

// function(parts of each x) for all parts: a function of lanes gives the same whatever their size.
template <class T, class Function, class... Vectors>
inline Vector<T> by_parts(const Function& function, const Vectors&... x) {
  Vector<T> result;
  Vector<T>::for_each_part([&](auto i) { result.part[i] = function(x.part[i]...); });
  return result;
}

template <class T>
inline Vector<T> splat(T value) {
  return Vector<T>(value);
}

template <class T>
inline Vector<T> load(const T* from) {
  Vector<T> value;
  Vector<T>::for_each_part(
      [&](auto i) { std::memcpy(&value.part[i], from + i * part_width<T>, sizeof value.part[i]); });
  return value;
}

template <class T>
inline void store(T* to, const Vector<T>& value) {
  Vector<T>::for_each_part(
      [&](auto i) { std::memcpy(to + i * part_width<T>, &value.part[i], sizeof value.part[i]); });
}

// The first `count` lanes from memory, `fill` in the others.
template <class T>
inline Vector<T> load_part(const T* from, int64_t count, T fill) {
  T lanes[width<T>];
  for (T& lane : lanes) lane = fill;
  std::memcpy(lanes, from, static_cast<size_t>(count) * sizeof(T));
  return load(lanes);
}

template <class T>
inline void store_part(T* to, const Vector<T>& value, int64_t count) {
  T lanes[width<T>];
  store(lanes, value);
  std::memcpy(to, lanes, static_cast<size_t>(count) * sizeof(T));
}

// NaN in `other` stays: a comparison with it is false.
template <class T>
inline Vector<T> larger(const Vector<T>& x, const Vector<T>& other) {
  return by_parts<T>([](Part<T> a, Part<T> b) -> Part<T> { return a > b ? a : b; }, x, other);
}

// Lane by lane from both halves to the middle: one order for every instruction set.
template <class T, int64_t half, class Join>
inline T fold(T* lanes, const Join& join) {
  for (int64_t lane = 0; lane < half; ++lane) lanes[lane] = join(lanes[lane], lanes[lane + half]);
  if constexpr (half > 1) fold<T, half / 2>(lanes, join);
  return lanes[0];
}

template <class T>
inline T sum_lanes(const Vector<T>& value) {
  T lanes[width<T>];
  store(lanes, value);
  return fold<T, width<T> / 2>(lanes, [](T x, T y) { return x + y; });
}

template <class T>
inline T max_lanes(const Vector<T>& value) {
  T lanes[width<T>];
  store(lanes, value);
  return fold<T, width<T> / 2>(lanes, [](T x, T y) { return y > x ? y : x; });
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
inline void store_lanes(T* to, const Vector<T>& value, int64_t lanes) {
  if (lanes == width<T>)
    store(to, value);
  else
    store_part(to, value, lanes);
}

}  // namespace ocvtp::OCVTP_ISA
