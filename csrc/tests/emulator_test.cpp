// The emulator itself: what is right runs, what hardware leaves undefined is caught.
#include "expect_abort.h"

namespace ocvtp::test {
namespace {

__global__ void sums(const float* x, float* out, int n) {
  OCVTP_SHARED(float, scratch);
  float mine = 0.0f;
  for (int i = threadIdx.x; i < n; i += blockDim.x) mine += x[blockIdx.x * n + i];
  const float total = block_sum(mine, scratch);
  out[blockIdx.x * blockDim.x + threadIdx.x] = total;
}

void reductions() {
  Random random(1);
  for (int threads : {32, 96, 256, 1024}) {
    const int blocks = 3, n = 700;
    std::vector<float> x(blocks * n), out(blocks * threads);
    for (float& v : x) v = static_cast<float>(random.below(1000));
    emulate(blocks, threads, threads / 32 * sizeof(float), [&] { sums(x.data(), out.data(), n); });
    for (int block = 0; block < blocks; ++block) {
      float expected = 0.0f;
      for (int i = 0; i < n; ++i) expected += x[block * n + i];
      for (int i = 0; i < threads; ++i)
        EXPECT(out[block * threads + i] == expected, "%d threads", threads);
    }
  }
}

void indices() {
  std::vector<int> seen(2 * 3 * 2 * 4 * 5 * 2, 0);
  emulate(dim3(2, 3, 2), dim3(4, 5, 2), 0, [&] {
    const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    ++seen[block * 40 + thread];
  });
  for (int count : seen) EXPECT(count == 1, "%d", count);
}

void warp_words() {
  emulate(1, 64, 0, [] {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    EXPECT(__shfl_sync(kFullWarp, lane, 5) == 5, "index");
    EXPECT(__shfl_sync(kFullWarp, lane, 1, 8) == lane / 8 * 8 + 1, "index of a segment");
    EXPECT(__shfl_xor_sync(kFullWarp, lane, 3) == (lane ^ 3), "exclusive or");
    EXPECT(__shfl_up_sync(kFullWarp, lane, 2) == (lane < 2 ? lane : lane - 2), "up");
    EXPECT(__shfl_down_sync(kFullWarp, lane, 2) == (lane > 29 ? lane : lane + 2), "down");
    EXPECT(__shfl_xor_sync(kFullWarp, 1e300 * (lane + 1), 1) == 1e300 * ((lane ^ 1) + 1), "64 bit");
    EXPECT(__ballot_sync(kFullWarp, lane % 2) == 0xaaaaaaaau, "ballot");
    EXPECT(__any_sync(kFullWarp, lane == 31 && warp == 0) == (warp == 0), "any");
    EXPECT(__all_sync(kFullWarp, warp == 1) == (warp == 1), "all");
    // Halves of a warp may go apart.
    if (lane < 16) {
      EXPECT(__shfl_xor_sync(0x0000ffffu, lane, 1) == (lane ^ 1), "lower half");
    } else {
      EXPECT(__ballot_sync(0xffff0000u, true) == 0xffff0000u, "upper half");
    }
    EXPECT(warp_max(lane == 7 ? static_cast<float>(kNaN) : lane) == 31.0f, "maximum");
  });
}

void early_leavers() {
  std::vector<int> out(64, 0);
  emulate(1, 64, 0, [&] {
    if (threadIdx.x >= 32) return;
    __syncthreads();
    out[threadIdx.x] = 1;
  });
  for (int i = 0; i < 64; ++i) EXPECT(out[i] == (i < 32), "thread %d", i);
}

void shared_memory_is_poisoned() {
  emulate(2, 32, 128, [] {
    OCVTP_SHARED(float, x);
    EXPECT(std::isnan(x[threadIdx.x]), "block %u", blockIdx.x);
    x[threadIdx.x] = 0.0f;
  });
}

void shared_memory_is_aligned() {
  for (std::size_t bytes : {0, 4, 5000, 40000})
    emulate(1, 1, bytes, [] {
      OCVTP_SHARED(unsigned char, x);
      EXPECT(reinterpret_cast<std::uintptr_t>(x) % 128 == 0, "%p", static_cast<void*>(x));
    });
}

void integer_atomics() {
  int sum = 0, largest = -1, smallest = 1000;
  unsigned short held = 0xffff;
  emulate(4, 64, 0, [&] {
    const int id = static_cast<int>(blockIdx.x * 64 + threadIdx.x);
    atomicAdd(&sum, id);
    atomicMax(&largest, id);
    atomicMin(&smallest, id);
    atomicCAS(&held, static_cast<unsigned short>(0xffff), static_cast<unsigned short>(id));
  });
  EXPECT(sum == 255 * 128 && largest == 255 && smallest == 0 && held < 64, "%d", sum);
}

void conversions() {
  for (unsigned bits = 0; bits < 0x10000u; ++bits) {
    const auto pattern = static_cast<std::uint16_t>(bits);
    const float h = __half2float(half{pattern}), b = __bfloat162float(bfloat16{pattern});
    if (!std::isnan(h)) EXPECT(__float2half_rn(h).bits == pattern, "half %04x", bits);
    if (!std::isnan(b)) EXPECT(__float2bfloat16_rn(b).bits == pattern, "bfloat16 %04x", bits);
    // Half way to the next number: to the even one, and just beyond it: up.
    if (!std::isfinite(h) || (pattern & 0x7fffu) == 0x7bffu) continue;
    const float next = __half2float(half{static_cast<std::uint16_t>(pattern + 1)});
    const float middle = h + (next - h) / 2;
    EXPECT(__float2half_rn(middle).bits == pattern + (pattern & 1u), "half after %04x", bits);
    EXPECT(__float2half_rn(std::nextafter(middle, next)).bits == pattern + 1u, "half %04x", bits);
  }
  EXPECT(__float2half_rn(65519.9f).bits == 0x7bff && __float2half_rn(65520.0f).bits == 0x7c00,
         "the largest half");
  EXPECT(std::isnan(__half2float(__float2half_rn(static_cast<float>(kNaN)))), "NaN");
}

void faults() {
  expect_abort("a block barrier that one thread waits out", 64, 0, [] {
    if (threadIdx.x != 3)
      __syncthreads();
    else
      __syncwarp();
  });
  expect_abort("two different block barriers", 64, 0, [] {
    if (threadIdx.x < 32)
      __syncthreads();
    else
      __syncthreads();
  });
  expect_abort("a warp barrier that one lane passes by", 32, 0, [] {
    if (threadIdx.x != 3) __syncwarp();
    __syncthreads();
  });
  expect_abort("a shuffle after a lane has left", 32, 0, [] {
    if (threadIdx.x == 31) return;
    __shfl_xor_sync(kFullWarp, 1, 1);
  });
  expect_abort("a shuffle from a lane outside the mask", 32, 0, [] {
    if (threadIdx.x < 16) __shfl_xor_sync(0x0000ffffu, 1, 16);
  });
  expect_abort("a mask without its own lane", 32, 0, [] { __ballot_sync(1u, true); });
  expect_abort("a mask of lanes that are not there", 16, 0, [] { __ballot_sync(kFullWarp, true); });
  expect_abort("a write past the shared memory", 32, 64, [] {
    OCVTP_SHARED(float, x);
    x[threadIdx.x] = 0.0f;
  });
  expect_abort("too many threads", 1025, 0, [] {});
}

// Without its barrier a neighbour's value is read before it is written, in some round's order.
void a_missing_barrier_shows() {
  int wrong = 0;
  emulate(1, 64, 64 * sizeof(float), [&] {
    OCVTP_SHARED(float, x);
    x[threadIdx.x] = static_cast<float>(threadIdx.x);
    wrong += !(x[(threadIdx.x + 1) % 64] == static_cast<float>((threadIdx.x + 1) % 64));
  });
  EXPECT(wrong > 0, "the race stayed hidden");
}

}  // namespace
}  // namespace ocvtp::test

int main() {
  using namespace ocvtp::test;
  reductions();
  indices();
  warp_words();
  early_leavers();
  shared_memory_is_poisoned();
  shared_memory_is_aligned();
  integer_atomics();
  conversions();
  faults();
  a_missing_barrier_shows();
  return result("emulator_test");
}
