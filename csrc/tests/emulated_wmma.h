// nvcuda::wmma on the emulator, as far as csrc/common/mma.cuh uses it.
//
// CUDA leaves the layout of these fragments open. Here it is that of mma.sync, two side by side:
// PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type" (9.7.14.5.8). nvcc's code
// for sm_75 and newer loads and stores just so. sm_70's layout is another and documented nowhere:
// it does not run here.
//
// Products of halves are exact in float32; sums are float32 in the order of the depth, where the
// hardware has an order and a rounding of its own.
#pragma once

#include <type_traits>

#include "emulator.h"

namespace nvcuda::wmma {

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
enum layout_t { mem_row_major };

template <class T>
struct Elements {
  // nvcc's has 16 for A and B of halves, each element twice.
  static constexpr int num_elements = 8;
  T x[num_elements];
  // NaN, as for shared memory: what is read before it is written shows.
  Elements() { std::memset(static_cast<void*>(x), 0xFF, sizeof x); }
};

template <class Use, int M, int N, int K, class T, class Layout = void>
struct fragment;
template <class T, class Layout>
struct fragment<matrix_a, 16, 16, 16, T, Layout> : Elements<T> {};
template <class T, class Layout>
struct fragment<matrix_b, 16, 16, 16, T, Layout> : Elements<T> {};
template <>
struct fragment<accumulator, 16, 16, 16, float> : Elements<float> {};

template <class T, class Layout>
using MatrixA = fragment<matrix_a, 16, 16, 16, T, Layout>;
template <class T, class Layout>
using MatrixB = fragment<matrix_b, 16, 16, 16, T, Layout>;
using Accumulator = fragment<accumulator, 16, 16, 16, float>;

struct Place {
  int row, column;
};

// Of the running lane's element i in A (row, depth) and in the accumulator (row, column).
inline Place place_in_rows(int i) {
  const int lane = static_cast<int>(ocvtp::emulator::machine.current % ocvtp::emulator::kWarp);
  return {lane / 4 + i / 2 % 2 * 8, lane % 4 * 2 + i % 2 + i / 4 * 8};
}

// In B (depth, column).
inline Place place_in_columns(int i) {
  const int lane = static_cast<int>(ocvtp::emulator::machine.current % ocvtp::emulator::kWarp);
  return {lane % 4 * 2 + i % 2 + i / 2 % 2 * 8, lane / 4 + i / 4 * 8};
}

// The lane's part in a call of the whole warp for a matrix in memory, whose alignment is as the
// CUDA programming guide demands. Lanes are compared where they next meet, and none waits here:
// these calls order no reads and writes of memory.
template <class T>
void take_part(const T* at, unsigned stride, int line) {
  using namespace ocvtp::emulator;
  const auto address = reinterpret_cast<std::uintptr_t>(at);
  if (machine.current / kWarp * kWarp + kWarp > machine.fibers.size())
    fail("a matrix call of a warp that is not whole");
  if (address % 32 != 0) fail("a matrix that does not start at a multiple of 32 bytes");
  if (stride * sizeof(T) % 16 != 0) fail("a matrix whose stride is no multiple of 16 bytes");
  std::uint64_t& calls = machine.fibers[machine.current].matrix_calls;
  for (std::uint64_t word : {std::uint64_t{address}, std::uint64_t{stride} << 32 | unsigned(line)})
    calls = ((calls ^ word) + 1) * 0x9E3779B97F4A7C15u;
}

template <class T, class Layout>
void load_matrix_sync(MatrixA<T, Layout>& a, const T* from, unsigned stride,
                      int line = __builtin_LINE()) {
  static_assert(std::is_same<Layout, row_major>::value, "no kernel has A in columns");
  take_part(from, stride, line);
  for (int i = 0; i < a.num_elements; ++i) {
    const Place place = place_in_rows(i);
    a.x[i] = from[place.row * stride + place.column];
  }
}

template <class T, class Layout>
void load_matrix_sync(MatrixB<T, Layout>& b, const T* from, unsigned stride,
                      int line = __builtin_LINE()) {
  take_part(from, stride, line);
  for (int i = 0; i < b.num_elements; ++i) {
    const Place place = place_in_columns(i);
    b.x[i] = from[std::is_same<Layout, col_major>::value ? place.column * stride + place.row
                                                         : place.row * stride + place.column];
  }
}

inline void load_matrix_sync(Accumulator& c, const float* from, unsigned stride, layout_t,
                             int line = __builtin_LINE()) {
  take_part(from, stride, line);
  for (int i = 0; i < c.num_elements; ++i) {
    const Place place = place_in_rows(i);
    c.x[i] = from[place.row * stride + place.column];
  }
}

inline void store_matrix_sync(float* to, const Accumulator& c, unsigned stride, layout_t,
                              int line = __builtin_LINE()) {
  take_part(to, stride, line);
  for (int i = 0; i < c.num_elements; ++i) {
    const Place place = place_in_rows(i);
    to[place.row * stride + place.column] = c.x[i];
  }
}

inline void fill_fragment(Accumulator& c, float value) {
  for (float& x : c.x) x = value;
}

// What the lanes of a warp multiply. Two in turn: a lane reaches product i + 2 only when all have
// read product i.
struct Product {
  float a[2][16][16], b[2][16][16];
  unsigned done[ocvtp::emulator::kWarp];
};
inline Product product_of_warp[1024 / ocvtp::emulator::kWarp];

inline float upcast(__half x) { return __half2float(x); }
inline float upcast(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T, class LayoutA, class LayoutB>
void mma_sync(Accumulator& d, const MatrixA<T, LayoutA>& a, const MatrixB<T, LayoutB>& b,
              const Accumulator& c, const char* file = __builtin_FILE(),
              int line = __builtin_LINE()) {
  using namespace ocvtp::emulator;
  Product& product = product_of_warp[machine.current / kWarp];
  const unsigned turn = product.done[machine.current % kWarp]++ & 1;
  for (int i = 0; i < a.num_elements; ++i) {
    const Place in_a = place_in_rows(i), in_b = place_in_columns(i);
    product.a[turn][in_a.row][in_a.column] = upcast(a.x[i]);
    product.b[turn][in_b.row][in_b.column] = upcast(b.x[i]);
  }
  sync_warp(0xffffffffu, file, line);
  const Place first = place_in_rows(0);
  float sum[8];
  for (int i = 0; i < 8; ++i) sum[i] = c.x[i];
  for (int depth = 0; depth < 16; ++depth) {
    const float upper = product.a[turn][first.row][depth];
    const float lower = product.a[turn][first.row + 8][depth];
    const float* const right = product.b[turn][depth] + first.column;
    sum[0] += upper * right[0];
    sum[1] += upper * right[1];
    sum[2] += lower * right[0];
    sum[3] += lower * right[1];
    sum[4] += upper * right[8];
    sum[5] += upper * right[9];
    sum[6] += lower * right[8];
    sum[7] += lower * right[9];
  }
  for (int i = 0; i < 8; ++i) d.x[i] = sum[i];
}

}  // namespace nvcuda::wmma
