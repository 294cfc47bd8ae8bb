// The emulated WMMA alone: exact products, their layout, and what hardware leaves undefined.
#include "common/mma.cuh"
#include "expect_abort.h"

namespace ocvtp::test {
namespace {

using namespace nvcuda::wmma;
static_assert(std::is_same<WarpTile<half>, TensorTile<half>>::value);
static_assert(std::is_same<WarpTile<bfloat16>, TensorTile<bfloat16>>::value);
static_assert(std::is_same<WarpTile<float>, SimtTile<float>>::value);

// Three products in a row by two warps, rows apart by more than 16: exact, as the numbers are small
// multiples of 1/16.
template <class T, bool TRANSPOSED>
void products() {
  using Tile = TensorTile<T>;
  constexpr int kA = 24, kB = 40, kC = 20, kProducts = 3, kMatrices = 2 * kProducts;
  alignas(32) static T a[kMatrices * 16 * kA], b[kMatrices * 16 * kB];
  alignas(32) static float out[2 * 16 * kC];
  Random random(TRANSPOSED + 2 * sizeof(T));
  for (T& x : a) x = from_float<T>(static_cast<float>(random.below(129) - 64) / 16.0f);
  for (T& x : b) x = from_float<T>(static_cast<float>(random.below(129) - 64) / 16.0f);
  for (float& x : out) x = 7.0f;
  emulate(1, 64, 0, [] {
    const int warp = threadIdx.x / 32;
    typename Tile::Sum sum;
    sum.zero();
    for (int i = warp * kProducts; i < (warp + 1) * kProducts; ++i) {
      typename Tile::Left left;
      left.load(a + i * 16 * kA, kA);
      typename Tile::template Right<TRANSPOSED> right;
      right.load(b + i * 16 * kB, kB);
      Tile::multiply(sum, left, right);
    }
    sum.add(sum);
    sum.store(out + warp * 16 * kC, kC);
  });
  for (int i = 0; i < 2 * 16 * kC; ++i) {
    const int warp = i / (16 * kC), row = i / kC % 16, column = i % kC;
    double expected = column < 16 ? 0.0 : 7.0;
    for (int depth = 0; depth < 16 * kProducts && column < 16; ++depth) {
      const int matrix = warp * kProducts + depth / 16, k = depth % 16;
      expected +=
          2.0 * value(a[(matrix * 16 + row) * kA + k]) *
          value(b[TRANSPOSED ? (matrix * 16 + column) * kB + k : (matrix * 16 + k) * kB + column]);
    }
    EXPECT(out[i] == expected, "%s row %d column %d: %g, expected %g", name<T>(), row, column,
           static_cast<double>(out[i]), expected);
  }
}

// Lane 6's elements, by the tables of mma.m16n8k16: group 1, third pair.
void fragments_are_laid_out_as_mma_sync_has_them() {
  alignas(32) static half x[16 * 16];
  alignas(32) static float sums[16 * 16];
  for (int i = 0; i < 256; ++i) x[i] = from_float<half>(sums[i] = static_cast<float>(i));
  emulate(1, 32, 0, [] {
    fragment<matrix_a, 16, 16, 16, half, row_major> a;
    fragment<matrix_b, 16, 16, 16, half, row_major> b;
    fragment<matrix_b, 16, 16, 16, half, col_major> transposed;
    fragment<accumulator, 16, 16, 16, float> c;
    EXPECT(std::isnan(value(a.x[0])) && std::isnan(c.x[7]), "numbers before any is loaded");
    load_matrix_sync(a, x, 16);
    load_matrix_sync(b, x, 16);
    load_matrix_sync(transposed, x, 16);
    load_matrix_sync(c, sums, 16, mem_row_major);
    constexpr int kRows[] = {1, 1, 9, 9, 1, 1, 9, 9}, kColumns[] = {4, 5, 4, 5, 12, 13, 12, 13};
    constexpr int kDepths[] = {4, 5, 12, 13, 4, 5, 12, 13}, kOfB[] = {1, 1, 1, 1, 9, 9, 9, 9};
    for (int i = 0; i < 8 && threadIdx.x == 6; ++i) {
      EXPECT(value(a.x[i]) == kRows[i] * 16 + kColumns[i], "a%d", i);
      EXPECT(value(b.x[i]) == kDepths[i] * 16 + kOfB[i], "b%d", i);
      EXPECT(value(transposed.x[i]) == kOfB[i] * 16 + kDepths[i], "b%d of B transposed", i);
      EXPECT(c.x[i] == static_cast<float>(kRows[i] * 16 + kColumns[i]), "c%d", i);
    }
  });
}

void matrix_faults() {
  using Tile = TensorTile<half>;
  alignas(32) static half x[16 * 32];
  alignas(32) static float sums[16 * 32];
  expect_abort("a matrix that starts at 16 bytes", 32, 0, [] { Tile::Left().load(x + 8, 16); });
  expect_abort("sums that start at 16 bytes", 32, 0, [] { Tile::Sum().store(sums + 4, 16); });
  expect_abort("halves apart by 40 bytes", 32, 0, [] { Tile::Right<true>().load(x, 20); });
  expect_abort("sums apart by 72 bytes", 32, 0, [] { Tile::Sum().store(sums, 18); });
  expect_abort("half a warp loads", 16, 0, [] { Tile::Left().load(x, 16); });
  expect_abort("half a warp multiplies", 16, 0, [] {
    Tile::Sum sum;
    Tile::multiply(sum, Tile::Left(), Tile::Right<false>());
  });
  expect_abort("a lane that does not load", 64, 0, [] {
    if (threadIdx.x != 35) Tile::Left().load(x, 16);
  });
  expect_abort("a lane that has left when others store", 32, 0, [] {
    if (threadIdx.x == 31) return;
    Tile::Sum().store(sums, 16);
  });
  expect_abort("a lane that does not multiply", 32, 0, [] {
    Tile::Sum sum;
    if (threadIdx.x != 3) Tile::multiply(sum, Tile::Left(), Tile::Right<false>());
    __syncthreads();
  });
  expect_abort("lanes that load from different places", 32, 0,
               [] { Tile::Left().load(threadIdx.x < 16 ? x : x + 16, 32); });
  expect_abort("lanes that store by different strides", 32, 0,
               [] { Tile::Sum().store(sums, threadIdx.x < 16 ? 16 : 32); });
  expect_abort("lanes that load in different orders", 32, 0, [] {
    Tile::Left left;
    Tile::Right<true> right;
    if (threadIdx.x % 2) left.load(x, 16);
    right.load(x, 16);
    if (threadIdx.x % 2 == 0) left.load(x, 16);
    __syncwarp();
  });
}

// Calls for a matrix in memory are no barriers: what needs one shows.
void a_missing_barrier_shows() {
  int wrong = 0;
  emulate(1, 32, 256 * sizeof(float), [&] {
    OCVTP_SHARED(float, x);
    TensorTile<half>::Sum sum;
    sum.zero();
    sum.store(x, 16);
    for (int i = 0; i < 256; ++i) wrong += x[i] != 0.0f;
  });
  EXPECT(wrong > 0, "the race stayed hidden");
}

}  // namespace
}  // namespace ocvtp::test

int main() {
  using namespace ocvtp;
  test::products<half, false>();
  test::products<half, true>();
  test::products<bfloat16, false>();
  test::products<bfloat16, true>();
  test::fragments_are_laid_out_as_mma_sync_has_them();
  test::matrix_faults();
  test::a_missing_barrier_shows();
  return test::result("emulated_wmma_test");
}
